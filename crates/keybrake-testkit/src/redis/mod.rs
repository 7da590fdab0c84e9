//! Private Redis servers for tests and demos: each in a temporary directory of its own, on a port that the kernel
//! chose, without any configuration of the machine. They need Debian's `redis-server` on `PATH`; without it starting
//! one is an error that says how to get it. [`Replicated`] and [`Cluster`] are several of them; [`Relay`] stands between
//! a client and a server and goes wrong on command.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer};
//!
//! let mut redis = RedisServer::start(RedisOptions::new().persistence(Persistence::Always))?;
//! redis.command(&["SET", "spent", "17"])?;
//! redis.kill()?; // SIGKILL
//! redis.restart()?; // the same address, the same directory
//! assert_eq!(redis.command(&["GET", "spent"])?.text(), Some("17"));
//! # Ok(())
//! # }
//! ```

mod cluster;
mod frame;
pub(crate) mod log;
pub(crate) mod port;
pub(crate) mod process;
mod relay;
mod replicated;
mod resp;
mod server;

pub use cluster::Cluster;
pub use relay::Relay;
pub use replicated::Replicated;
pub use resp::{Connection, Reply};
pub use server::{Persistence, RedisOptions, RedisServer, Snapshot};

use std::time::Duration;

/// How long a server, a replica or a cluster may take until it is ready, and a command until it is answered.
pub const PATIENCE: Duration = Duration::from_secs(10);
