//! An engine: a runtime with one worker, the ledger, and the client that sends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use keybrake::{Error, Result};
use keybrake_binding::call::{self, Answer, Outgoing};
use keybrake_binding::core::{CLOSING, closed, until_closed};
use keybrake_binding::trouble::Guarded;
use keybrake_binding::{Core, Settings, ask, permit};
use napi::Env;
use napi::bindgen_prelude::{Either, Object, ToNapiValue};
use napi_derive::napi;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;

use crate::answers::{Answers, Due, Ended};
use crate::errors::{guarded, to_node};
use crate::given_up::{Cancel, Overdue, given_up};
use crate::permit::Verdict;
use crate::stream::Reading;

/// The engine behind one `Keybrake`. Its ledger is opened on first use.
#[napi]
pub struct Engine {
    core: Arc<Core>,
    worker: Worker,
    runtime: Arc<Mutex<Option<Runtime>>>,
    answers: Arc<Answers>,
}

/// Where work runs, and how it learns that the engine closes.
#[derive(Clone)]
pub(crate) struct Worker {
    handle: Handle,
    closing: watch::Sender<bool>,
}

#[napi]
impl Engine {
    /// Takes the settings as JSON, and the function that is told how each call of `send` ended.
    #[napi(constructor)]
    pub fn new(settings: String, ended: Ended<'_>) -> napi::Result<Self> {
        let answers = Arc::new(Answers::to(&ended)?);
        guarded(|| {
            let settings = Settings::parse(&settings)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("keybrake")
                .enable_all()
                .build()
                .map_err(|e| Error::config("no thread could be started for Keybrake").because(e))?;
            Ok(Self {
                core: Arc::new(Core::new(Arc::new(settings))),
                worker: Worker {
                    handle: runtime.handle().clone(),
                    closing: watch::Sender::new(false),
                },
                runtime: Arc::new(Mutex::new(Some(runtime))),
                answers,
            })
        })
    }

    /// Opens the ledger now, so that a mistake in the settings shows now.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn open<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let core = Arc::clone(&self.core);
        let work = async move { core.keybrake().await.map(|_| ()) };
        self.worker.promise(env, self.worker.unless_closed(work), |()| ())
    }

    /// One question or order to the ledger: JSON in, JSON out.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn ask<'env>(&self, env: &'env Env, what: String, arguments: String) -> napi::Result<Object<'env>> {
        let core = Arc::clone(&self.core);
        let work = async move { ask::answer(&core, &what, &arguments).await };
        self.worker
            .promise(env, self.worker.unless_closed(work), |text| text)
    }

    /// One governed call. What became of it is delivered under `number`. `headers` alternates names and values, as one
    /// text of lines or as a list. After `most_ms` (0: never) the call is given up. With `stream`, a document is left to
    /// be read as it arrives.
    #[napi]
    pub fn send(
        &self,
        number: u32,
        method: String,
        url: String,
        headers: Either<String, Vec<String>>,
        body: &[u8],
        context: String,
        wait_ms: u32,
        most_ms: u32,
        stream: bool,
        cancel: Option<&Cancel>,
    ) -> napi::Result<()> {
        let headers = match headers {
            Either::A(lines) => lines.split('\n').map(str::to_owned).collect(),
            Either::B(list) => list,
        };
        let outgoing = outgoing((&method, url, headers, body), &context, wait_ms)?;
        let (given_up, overdue) = given_up(cancel, most_ms);
        let core = Arc::clone(&self.core);
        let work = call::make(core, outgoing, stream, given_up);
        let due = Due::new(&self.answers, number, Reading(self.worker.clone()));
        self.worker.deliver(due, overdue, work);
        Ok(())
    }

    /// Judges a call, reserves what it can cost, and leaves the sending to the caller.
    #[napi(ts_return_type = "Promise<Verdict>")]
    pub fn authorize<'env>(
        &self,
        env: &'env Env,
        method: String,
        url: String,
        headers: Vec<String>,
        body: &[u8],
        context: String,
        wait_ms: u32,
        cancel: Option<&Cancel>,
    ) -> napi::Result<Object<'env>> {
        let outgoing = outgoing((&method, url, headers, body), &context, wait_ms)?;
        let (given_up, _) = given_up(cancel, 0);
        let work = permit::authorize(Arc::clone(&self.core), outgoing, given_up);
        let settling = self.worker.clone();
        let work = self.worker.unless_closed(work);
        self.worker
            .promise(env, work, |verdict| Verdict::new(verdict, settling))
    }

    /// Ends the engine: calls under way are given up (their holds stay), what is lazy is written down.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn close<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let (deferred, promise) = env.create_deferred::<(), _>()?;
        let (core, closing) = (Arc::clone(&self.core), self.worker.closing.clone());
        let runtime = Arc::clone(&self.runtime);
        // A thread of its own: the runtime cannot end itself.
        let ended = std::thread::Builder::new()
            .name("keybrake-close".to_owned())
            .spawn(move || match close(&runtime, &core, &closing) {
                Ok(()) => deferred.resolve(|_| Ok(())),
                Err(error) => deferred.reject(to_node(&error)),
            });
        match ended {
            Ok(_) => Ok(promise),
            Err(e) => Err(to_node(
                &Error::config("no thread could be started to close Keybrake").because(e),
            )),
        }
    }

    /// The same while the process exits, when nothing can be awaited any more; waits for a `close` under way. Blocks for at
    /// most twelve seconds.
    #[napi]
    pub fn close_now(&self) -> napi::Result<()> {
        guarded(|| close(&self.runtime, &self.core, &self.worker.closing))
    }
}

/// Whoever closes it while another does waits until that one has.
fn close(runtime: &Mutex<Option<Runtime>>, core: &Core, closing: &watch::Sender<bool>) -> Result<()> {
    let mut held = runtime.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(runtime) = held.take() else { return Ok(()) };
    closing.send_replace(true);
    let flushed = runtime.block_on(core.ended(closing));
    runtime.shutdown_timeout(CLOSING);
    flushed
}

fn outgoing(
    (method, url, headers, body): (&str, String, Vec<String>, &[u8]),
    context: &str,
    wait_ms: u32,
) -> napi::Result<Outgoing> {
    guarded(|| {
        let parts = (method, url, pairs(headers), Bytes::copy_from_slice(body));
        Outgoing::new(parts, context, Duration::from_millis(u64::from(wait_ms)))
    })
}

/// Names and values that stand in turn.
pub(crate) fn pairs(headers: Vec<String>) -> Vec<(String, String)> {
    let mut texts = headers.into_iter();
    let mut pairs = Vec::with_capacity(texts.len() / 2);
    while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
        pairs.push((name, value));
    }
    pairs
}

impl Worker {
    /// A promise of what the work ends with, settled on the thread that asked, in any case.
    pub(crate) fn promise<'env, T, J>(
        &self,
        env: &'env Env,
        work: impl Future<Output = Result<T>> + Send + 'static,
        convert: impl FnOnce(T) -> J + Send + 'static,
    ) -> napi::Result<Object<'env>>
    where
        T: Send + 'static,
        J: ToNapiValue + 'static,
    {
        let (deferred, promise) = env.create_deferred()?;
        let promised = Promised(Some(Box::new(move |ended: Result<T>| match ended {
            Ok(value) => deferred.resolve(move |_| Ok(convert(value))),
            Err(error) => deferred.reject(to_node(&error)),
        })));
        if *self.closing.borrow() {
            drop(promised);
        } else {
            self.handle.spawn(async move { promised.settle(work.await) });
        }
        Ok(promise)
    }

    /// The work, ended early by closing: a request is then aborted, and what it may have done stays held as unknown.
    pub(crate) fn unless_closed<T: 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> impl Future<Output = Result<T>> + Send + 'static {
        until_closed(self.closing.subscribe(), work)
    }

    /// The work, which closing waits for, two seconds at most: what it records must not be lost.
    pub(crate) fn to_the_end<T: 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> impl Future<Output = Result<T>> + Send + 'static {
        let closing = self.closing.subscribe();
        let work = Guarded::new(work);
        async move {
            let ended = work.await;
            drop(closing);
            ended
        }
    }

    /// Starts a call whose end is delivered. Ended early by closing.
    fn deliver(
        &self,
        due: Due,
        overdue: Overdue,
        work: impl Future<Output = Result<Answer>> + Send + 'static,
    ) {
        if *self.closing.borrow() {
            return drop(due);
        }
        let work = self.unless_closed(work);
        self.handle.spawn(async move {
            let ended = work.await;
            due.deliver(ended, overdue.is());
        });
    }
}

/// A promise of JavaScript, which is settled in any case: also when the runtime drops the work unfinished, because it has
/// ended.
struct Promised<T>(Option<Box<dyn FnOnce(Result<T>) + Send>>);

impl<T> Promised<T> {
    fn settle(mut self, ended: Result<T>) {
        if let Some(settle) = self.0.take() {
            settle(ended);
        }
    }
}

impl<T> Drop for Promised<T> {
    fn drop(&mut self) {
        if let Some(settle) = self.0.take() {
            settle(Err(closed()));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.worker.closing.send_replace(true);
        // Where it is locked, another thread is closing it.
        if let Ok(mut held) = self.runtime.try_lock()
            && let Some(runtime) = held.take()
        {
            runtime.shutdown_background();
        }
    }
}
