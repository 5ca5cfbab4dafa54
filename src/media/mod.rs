//! Everything that touches FFmpeg or picture files: sinks for frames, readers for clips.
