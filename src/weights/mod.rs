//! Opening weight files: memory maps, shards, and an audit of every key.
