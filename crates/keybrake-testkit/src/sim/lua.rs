//! Functions of a library, run over a [`Store`] as Redis runs them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mlua::{Function, Lua, Table, Value};

use super::store::{Reply, Store};

/// What the functions see: the data, and the time at which they run.
#[derive(Debug, Default)]
pub(super) struct Data {
    pub(super) store: Store,
    pub(super) now_us: i64,
    /// How often the server has started, or another has taken its place.
    pub(super) run: u64,
    /// Whether the function that runs may write.
    may_write: bool,
}

impl Data {
    /// What `INFO` answers.
    pub(super) fn info(&self, section: &str) -> Reply {
        // 40 hexadecimal digits, other ones for every run.
        let id = |digits: u64| format!("{:016x}{:024x}", self.run.wrapping_mul(digits), self.run);
        let (run_id, history) = (id(0x9E37_79B9_7F4A_7C15), id(0xC2B2_AE3D_27D4_EB4F));
        Reply::Text(match section {
            "server" => format!("# Server\r\nredis_version:7.2.0\r\nrun_id:{run_id}\r\n"),
            "memory" => "# Memory\r\nmaxmemory_policy:noeviction\r\n".to_owned(),
            "replication" => {
                format!("# Replication\r\nrole:master\r\nmaster_replid:{history}\r\n")
            }
            _ => String::new(),
        })
    }
}

pub(super) type Shared = Arc<Mutex<Data>>;

/// How many times so many instructions a limited call may take: 1,000,000 at least.
const STRIKES: u32 = 2;
const INSTRUCTIONS: u32 = 500_000;

/// A library as a running server has it: its local variables live as long as this.
pub(super) struct Library {
    lua: Lua,
    data: Shared,
    functions: BTreeMap<String, (Function, bool)>,
    /// How often the present call took so many instructions.
    strikes: Arc<AtomicU32>,
}

impl Library {
    /// Loads a library's text, which begins with `#!lua name=…`.
    pub(super) fn load(text: &str, data: &Shared) -> Result<Self, String> {
        let source = match text.split_once('\n') {
            Some((first, rest)) if first.starts_with("#!lua name=") => rest,
            _ => return Err("ERR Missing library metadata".to_owned()),
        };
        let lua = Lua::new();
        let registered = Registered::default();
        let failed = |error: mlua::Error| format!("ERR Error compiling function: {error}");
        api(&lua, data, &registered).map_err(failed)?;
        lua.load(source).set_name("library").exec().map_err(failed)?;
        let found = std::mem::take(&mut *registered.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Self {
            lua,
            data: Arc::clone(data),
            strikes: Arc::default(),
            functions: found
                .into_iter()
                .map(|(name, function, writes)| (name, (function, writes)))
                .collect(),
        })
    }

    /// From now on a call that takes very long is broken off: its arguments make it count to what is no count.
    pub(super) fn limit(&self) {
        let strikes = Arc::clone(&self.strikes);
        let every = mlua::HookTriggers::new().every_nth_instruction(INSTRUCTIONS);
        let hook = self.lua.set_hook(every, move |_, _| {
            if strikes.fetch_add(1, Ordering::SeqCst) < STRIKES {
                return Ok(mlua::VmState::Continue);
            }
            Err(mlua::Error::runtime("it takes too long"))
        });
        hook.expect("a hook");
    }

    /// Whether the last call was broken off.
    pub(super) fn was_broken_off(&self) -> bool {
        self.strikes.load(Ordering::SeqCst) > STRIKES
    }

    /// `FCALL name`.
    pub(super) fn call(&self, name: &str, keys: &[String], args: &[String]) -> Reply {
        let Some((function, writes)) = self.functions.get(name) else {
            return Reply::Error("ERR Function not found".to_owned());
        };
        self.strikes.store(0, Ordering::SeqCst);
        self.data.lock().unwrap_or_else(PoisonError::into_inner).may_write = *writes;
        let answer = self
            .lua
            .create_sequence_from(keys.iter().map(String::as_str))
            .and_then(|keys| {
                Ok((
                    keys,
                    self.lua.create_sequence_from(args.iter().map(String::as_str))?,
                ))
            })
            .and_then(|(keys, args)| function.call::<Value>((keys, args)));
        match answer {
            Ok(value) => reply(&value),
            Err(error) => Reply::Error(refusal(&error)),
        }
    }
}

/// A command's own error as it is; whatever else a function fails with is an `ERR`.
fn refusal(error: &mlua::Error) -> String {
    match error {
        mlua::Error::CallbackError { cause, .. } => match cause.as_ref() {
            mlua::Error::RuntimeError(text) => first_line(text).to_owned(),
            other => refusal(other),
        },
        other => format!("ERR {}", first_line(&other.to_string())),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

type Registered = Arc<Mutex<Vec<(String, Function, bool)>>>;

/// The table `redis`.
fn api(lua: &Lua, data: &Shared, registered: &Registered) -> mlua::Result<()> {
    let redis = lua.create_table()?;
    let shared = Arc::clone(data);
    let call = lua.create_function(move |lua, words: mlua::Variadic<Value>| {
        let words = words.iter().map(word).collect::<mlua::Result<Vec<String>>>()?;
        let mut data = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let name = words.first().map_or("", String::as_str);
        if Store::writes(name) == Some(true) && !data.may_write {
            return Err(mlua::Error::runtime(
                "ERR Write commands are not allowed from read-only scripts.",
            ));
        }
        let reply = match words.as_slice() {
            [info, section] if info == "INFO" => data.info(section),
            words => {
                let now_us = data.now_us;
                data.store.run(now_us, words)
            }
        };
        drop(data);
        match reply {
            Reply::Error(error) => Err(mlua::Error::runtime(error)),
            reply => value(lua, &reply),
        }
    })?;
    redis.set("call", call)?;
    let error = lua.create_function(|lua, text: String| {
        let table = lua.create_table()?;
        table.set("err", text)?;
        Ok(table)
    })?;
    redis.set("error_reply", error)?;
    let registered = Arc::clone(registered);
    let register = lua.create_function(move |_, given: Table| {
        let flags: Vec<String> = match given.get::<Option<Table>>("flags")? {
            Some(flags) => flags.sequence_values().collect::<mlua::Result<_>>()?,
            None => Vec::new(),
        };
        registered.lock().unwrap_or_else(PoisonError::into_inner).push((
            given.get("function_name")?,
            given.get("callback")?,
            !flags.iter().any(|flag| flag == "no-writes"),
        ));
        Ok(())
    })?;
    redis.set("register_function", register)?;
    lua.globals().set("redis", redis)
}

/// An argument of `redis.call`.
fn word(value: &Value) -> mlua::Result<String> {
    match value {
        Value::String(text) => Ok(text.to_str()?.to_owned()),
        Value::Integer(number) => Ok(number.to_string()),
        _ => Err(mlua::Error::runtime(
            "ERR Lua redis lib command arguments must be strings or integers",
        )),
    }
}

/// A reply as Lua sees it.
fn value(lua: &Lua, reply: &Reply) -> mlua::Result<Value> {
    Ok(match reply {
        Reply::Nil => Value::Boolean(false),
        Reply::Int(number) => Value::Integer(*number),
        Reply::Text(text) => Value::String(lua.create_string(text)?),
        Reply::Status(text) => {
            let table = lua.create_table()?;
            table.set("ok", text.as_str())?;
            Value::Table(table)
        }
        Reply::Error(text) => {
            let table = lua.create_table()?;
            table.set("err", text.as_str())?;
            Value::Table(table)
        }
        Reply::List(parts) => {
            let table = lua.create_table()?;
            for part in parts {
                table.push(value(lua, part)?)?;
            }
            Value::Table(table)
        }
    })
}

/// What a function returned, as the client gets it.
fn reply(value: &Value) -> Reply {
    match value {
        Value::Boolean(true) => Reply::Int(1),
        Value::Integer(number) => Reply::Int(*number),
        Value::Number(number) => Reply::Int(whole(*number)),
        Value::String(text) => Reply::Text(text.to_string_lossy()),
        Value::Table(table) => {
            if let Ok(Some(error)) = table.get::<Option<String>>("err") {
                return Reply::Error(error);
            }
            if let Ok(Some(status)) = table.get::<Option<String>>("ok") {
                return Reply::Status(status);
            }
            let parts = table.sequence_values::<Value>();
            Reply::List(parts.map_while(Result::ok).map(|part| reply(&part)).collect())
        }
        _ => Reply::Nil,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "Redis cuts a number's fraction off"
)]
const fn whole(number: f64) -> i64 {
    number as i64
}
