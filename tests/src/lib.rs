//! Cross-crate tests live in `tests/`; what they share with their helper programs is here.

pub mod archives;
pub mod books;
pub mod crowd;
pub mod fleet;
pub mod gated;
pub mod journaling;
pub mod leasing;
pub mod processes;
pub mod restoring;
pub mod sender;
pub mod sending;
pub mod world;

pub use world::{Ended, World, ended, generated, noon_zone, post, refund, refunds, signed};

/// Waits for something that happens in the background. It fails after a minute, which guards against a hang.
pub async fn eventually(mut happened: impl AsyncFnMut() -> bool) {
    const LIMIT: std::time::Duration = std::time::Duration::from_mins(1);
    let wait = async {
        while !happened().await {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    assert!(
        tokio::time::timeout(LIMIT, wait).await.is_ok(),
        "it has not happened"
    );
}
