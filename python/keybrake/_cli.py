"""The `keybrake` command: the Rust command line, run from the package."""
