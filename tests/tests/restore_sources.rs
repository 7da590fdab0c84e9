//! What a restore begins with: a ledger that is there, and an archive that can be read.

use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::audit::Archive;
use keybrake::error::ErrorKind;
use keybrake_testkit::postgres::PostgresServer;
use keybrake_tests::archives::{drain, lively};

/// Else the file that a person puts back meets another ledger's, in which nothing was spent yet.
#[tokio::test]
async fn a_restore_of_a_file_that_is_gone_makes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
    let archive = Archive::open(&url("audit.db")).await.unwrap();
    {
        let ledger = keybrake::ledger::open(&url("spend.db"), Arc::new(SystemClock)).unwrap();
        lively(&*ledger, "one").await;
        drain(&*ledger, &archive, 100).await;
    }
    let files = || {
        let names = std::fs::read_dir(directory.path()).unwrap();
        let names = names.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("spend")).collect();
        names.sort();
        names
    };
    for file in files() {
        std::fs::remove_file(directory.path().join(file)).unwrap();
    }
    let refused = keybrake::audit::restore::open(&url("spend.db"), Arc::new(SystemClock), &archive, None)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(
        refused.to_string().contains("put a backup of the file"),
        "{refused}"
    );
    assert!(files().is_empty(), "{:?}", files());
}

#[tokio::test]
async fn an_archive_that_cannot_be_read_is_not_one_that_is_not_there() {
    let server = PostgresServer::start().unwrap();
    let missing = Archive::open_existing(&server.url()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    Archive::open(&server.url()).await.unwrap();
    let (client, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls)
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    client.batch_execute("CREATE ROLE stranger LOGIN").await.unwrap();
    drop(client);
    driver.await.unwrap().unwrap();
    let no_right = Archive::open_existing(&server.url_of("stranger"))
        .await
        .unwrap_err();
    assert_eq!(no_right.kind(), ErrorKind::Config, "{no_right}");
    assert!(no_right.to_string().contains("42501"), "{no_right}");
    let nobody = Archive::open_existing(&server.url_of("nobody_here"))
        .await
        .unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::Config, "{nobody}");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.db");
    let url = format!("sqlite:{}", path.display());
    let missing = Archive::open_existing(&url).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(!path.exists());
    Archive::open(&url).await.unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch("ALTER TABLE keybrake_archive RENAME COLUMN v TO version")
        .unwrap();
    drop(connection);
    let broken = Archive::open_existing(&url).await.unwrap_err();
    assert_ne!(broken.kind(), ErrorKind::NotFound, "{broken}");
}
