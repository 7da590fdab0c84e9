//! Three nodes that share the slots, without replicas.

use std::io;

use super::port::Port;
use super::server::{RedisOptions, RedisServer};

/// The first and last slot of each node.
const SLOTS: [(&str, &str); 3] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

/// A Redis Cluster of three primaries, in private directories as [`RedisServer`].
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<RedisServer>,
    /// Where the nodes talk to each other; ours for as long as they may come back.
    _buses: Vec<Port>,
}

impl Cluster {
    /// Starts the nodes and lets them meet; takes some two seconds, which Redis waits before it trusts the cluster.
    /// When this returns every node says `cluster_state:ok`.
    ///
    /// # Errors
    /// Those of [`RedisServer::start`], or they do not agree within [`super::PATIENCE`].
    pub fn start(options: &RedisOptions) -> io::Result<Self> {
        let mut nodes = Vec::new();
        let mut buses: Vec<Port> = Vec::new();
        for (number, (first, last)) in (1..).zip(SLOTS) {
            let bus = Port::free()?;
            let node = RedisServer::start(
                options
                    .clone()
                    .config("cluster-enabled yes")
                    .config(format!("cluster-port {}", bus.number()))
                    .config("cluster-node-timeout 5000"),
            )?;
            let epoch = number.to_string();
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch])?;
            node.command(&["CLUSTER", "ADDSLOTSRANGE", first, last])?;
            nodes.push(node);
            buses.push(bus);
        }
        if let Some((meeting, others)) = nodes.split_first() {
            for (node, bus) in others.iter().zip(buses.iter().skip(1)) {
                let (port, bus) = (node.port().to_string(), bus.number().to_string());
                meeting.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
            }
        }
        for node in &nodes {
            node.wait_for_log(0, "Cluster state changed: ok")?;
        }
        Ok(Self { nodes, _buses: buses })
    }

    /// The nodes, in the order of their slots.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// The nodes, to kill or restart one.
    pub fn nodes_mut(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }

    /// Their addresses.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }
}
