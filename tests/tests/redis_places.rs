//! A ledger behind Sentinels and in a cluster.

use std::sync::Arc;

use keybrake::clock::SystemClock;
use keybrake::ledger::Ledger;
use keybrake::ledger::redis::RedisLedger;
use keybrake::{ErrorKind, Result};
use keybrake_testkit::redis::{Cluster, RedisOptions, Replicated};
use keybrake_tests::books::{DOLLAR, call, charged, key, lifetime, reserve};

fn open(url: &str) -> Result<RedisLedger> {
    RedisLedger::open(url, Arc::new(SystemClock), None)
}

fn sentinels(pair: &mut Replicated, ns: &str) -> String {
    let (url, name) = (pair.sentinel().url(), pair.name());
    let address = url.trim_start_matches("redis://");
    format!("redis+sentinel://{address}/{name}?ns={ns}&timeout_ms=20000")
}

/// After a failover that lost nothing, the promoted replica is closed until a process that saw the last state opens it;
/// then the same budget goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_without_loss_goes_on_with_the_same_books() {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let url = sentinels(&mut pair, "fleet");
    let ledger = open(&url).unwrap();
    let cap = lifetime("a", 10 * DOLLAR);
    let record = key(&ledger, "a", std::slice::from_ref(&cap)).await.unwrap();
    reserve(&ledger, call(&record, "one", 6 * DOLLAR))
        .await
        .unwrap()
        .unwrap();
    pair.wait_in_step().unwrap();
    pair.failover().unwrap();

    let newcomer = open(&url).unwrap();
    let error = reserve(&newcomer, call(&record, "two", DOLLAR))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerRecovering, "{error}");
    ledger.settle(charged("one", 6 * DOLLAR)).await.unwrap();
    let refused = reserve(&newcomer, call(&record, "three", 5 * DOLLAR))
        .await
        .unwrap();
    assert_eq!(refused.unwrap_err(), "CapExceeded");
    reserve(&newcomer, call(&record, "four", 4 * DOLLAR))
        .await
        .unwrap()
        .unwrap();
    let report = ledger.verify().await.unwrap();
    assert!(report.chain_ok && report.differences.is_empty(), "{report:?}");
}

/// Every namespace lives on the node that owns its slot, whichever node is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_spread_over_a_cluster() {
    let cluster = Cluster::start(&RedisOptions::new()).unwrap();
    let seeds: Vec<String> = cluster
        .urls()
        .iter()
        .map(|url| url.trim_start_matches("redis://").to_owned())
        .collect();
    for ns in ["a", "b", "c", "d", "e"] {
        let url = format!("redis+cluster://{}?ns={ns}&timeout_ms=20000", seeds.join(","));
        let ledger = open(&url).unwrap();
        let cap = lifetime("a", 3 * DOLLAR);
        let record = key(&ledger, "a", std::slice::from_ref(&cap)).await.unwrap();
        reserve(&ledger, call(&record, "one", 2 * DOLLAR))
            .await
            .unwrap()
            .unwrap();
        let refused = reserve(&ledger, call(&record, "two", 2 * DOLLAR)).await.unwrap();
        assert_eq!(refused.unwrap_err(), "CapHeld");
        assert_eq!(
            ledger
                .holds(keybrake::ledger::HoldFilter::default())
                .await
                .unwrap()
                .len(),
            1
        );
    }
    let with_data = cluster
        .nodes()
        .iter()
        .filter(|node| node.command(&["DBSIZE"]).unwrap().integer() != Some(0));
    assert!(with_data.count() > 1, "five namespaces are on more than one node");
}
