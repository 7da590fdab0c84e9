//! `init`: the two files to begin with.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use keybrake::audit::printable;
use serde_json::json;

use crate::args::InitArgs;
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};

const POLICY: &str = r#"{
  "vendor": "stripe",
  "agent_id": "support",
  "expires_in": "24h",
  "daily_usd_cap": 250,
  "max_amount_per_call_usd": 50,
  "allowed_endpoints": ["refunds.create", "reads"]
}
"#;

pub(crate) fn run(context: &mut Context<'_>, args: &InitArgs) -> Outcome {
    let ledger = context.ledger_url()?;
    let settings = format!(
        "# Read by the keybrake command (only `ledger`, and only while nobody else can read this file), and by programs\n\
         # that name it in KEYBRAKE_CONFIG. Do not commit it: ledger URLs may hold passwords.\n\
         ledger = {}\n",
        toml_text(&ledger)
    );
    let policies = args.directory.join("policies");
    DirBuilder::new().recursive(true).mode(0o755).create(&policies)?;
    let files = [
        (args.directory.join("keybrake.toml"), settings.as_str(), 0o600),
        (policies.join("support.json"), POLICY, 0o644),
    ];
    let mut written = Vec::new();
    for (path, text, mode) in &files {
        let done = write_new(path, text, *mode)?;
        written.push((path.display().to_string(), done));
    }
    if context.json {
        let files = written
            .iter()
            .map(|(path, done)| json!({"path": path, "written": done}));
        context.answer(json!({"files": files.collect::<Vec<_>>()}))?;
        return Ok(exit::OK);
    }
    for (path, done) in &written {
        let word = if *done { "wrote" } else { "kept " };
        context.line(format!("{word} {}", printable(path)))?;
    }
    context.line("\nNext:\n  keybrake policy check policies/support.json\n  keybrake keys issue --policy policies/support.json --run run_1\n  keybrake doctor")?;
    Ok(exit::OK)
}

/// Writes a new file; answers whether it did. What is there already stays.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<bool, Failure> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    match file {
        Ok(mut file) => {
            file.write_all(text.as_bytes())?;
            Ok(true)
        }
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(cause) => Err(Failure::usage(format!("{}: {cause}", path.display()))),
    }
}

/// A text as TOML writes it; TOML's basic strings take JSON's escapes.
fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
