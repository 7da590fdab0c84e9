//! The `keybrake` command.
fn main() {}
