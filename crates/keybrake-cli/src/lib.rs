//! The `keybrake` command as a library.
