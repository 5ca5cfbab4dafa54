//! Layers and kernels below all families: shapes and speed, no family's name.
