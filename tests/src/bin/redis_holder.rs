//! Starts a private Redis in a thread that then ends, prints its port, and waits to be killed.

use std::io::{Read, Write};

use keybrake_testkit::redis::{RedisOptions, RedisServer};

fn main() -> anyhow::Result<()> {
    let starting = std::thread::spawn(|| RedisServer::start(RedisOptions::new()));
    let server = starting
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    // The thread that asked is gone; the server must not be.
    server.command(&["PING"])?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", server.port())?;
    out.flush()?;
    // Until standard input ends, which is when the test is gone too.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
