//! What became of calls, on its way to JavaScript: one function for all calls of an engine.
//!
//! A promise of the native module costs a threadsafe function each, an object of a class its finalizer, and a getter a
//! crossing. So an answer is handed over as plain values in one call, and JavaScript keeps the promise.

use std::sync::Arc;

use bytes::Bytes;
use keybrake::Result;
use keybrake_binding::call::Answer;
use keybrake_binding::core::closed;
use napi::Status;
use napi::bindgen_prelude::{Buffer, Either, FnArgs, Function};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};

use crate::errors::text_of;
use crate::stream::{Reading, Stream};

/// A longer body is handed over as bytes; a shorter one that is UTF-8 as a string, which is what its reader makes of it.
const LONGEST_TEXT: usize = 64 * 1024;

/// The call's number; why it failed, or `null`; whether its time was over; then the answer: kind, status, headers, body,
/// record, denial, reason, whether it was surely never sent, and the body as a stream.
type Values = (
    u32,
    Option<String>,
    bool,
    &'static str,
    u16,
    String,
    Option<Either<String, Buffer>>,
    String,
    Option<String>,
    Option<String>,
    bool,
    Option<Stream>,
);

/// The function of JavaScript that is told.
pub(crate) type Ended<'a> = Function<'a, FnArgs<Values>, ()>;

/// How a call ended, and whether that was because its time was over.
struct Delivery {
    number: u32,
    ended: Result<Answer>,
    overdue: bool,
    reading: Reading,
}

/// Tells JavaScript how calls ended. It does not keep the process alive: whoever waits for an answer does.
pub(crate) struct Answers(ThreadsafeFunction<Delivery, (), FnArgs<Values>, Status, false, true>);

impl Answers {
    pub(crate) fn to(ended: &Ended<'_>) -> napi::Result<Self> {
        let told = ended
            .build_threadsafe_function::<Delivery>()
            .callee_handled::<false>()
            .weak::<true>()
            .build_callback(|delivery| Ok(delivery.value.values().into()))?;
        Ok(Self(told))
    }

    /// Says how a call ended. Where JavaScript has ended meanwhile, nobody hears it.
    fn deliver(&self, delivery: Delivery) {
        self.0.call(delivery, ThreadsafeFunctionCallMode::NonBlocking);
    }
}

/// An answer that JavaScript waits for. It is told in any case: also when the runtime drops the work unfinished, because
/// it has ended.
pub(crate) struct Due {
    answers: Arc<Answers>,
    number: u32,
    reading: Option<Reading>,
}

impl Due {
    pub(crate) fn new(answers: &Arc<Answers>, number: u32, reading: Reading) -> Self {
        Self {
            answers: Arc::clone(answers),
            number,
            reading: Some(reading),
        }
    }

    /// `overdue` says that it was given up because its time was over.
    pub(crate) fn deliver(mut self, ended: Result<Answer>, overdue: bool) {
        self.tell(ended, overdue);
    }

    fn tell(&mut self, ended: Result<Answer>, overdue: bool) {
        if let Some(reading) = self.reading.take() {
            self.answers.deliver(Delivery {
                number: self.number,
                ended,
                overdue,
                reading,
            });
        }
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.tell(Err(closed()), false);
    }
}

impl Delivery {
    fn values(self) -> Values {
        let answer = match self.ended {
            Ok(answer) => answer,
            Err(error) => return failed(self.number, text_of(&error), self.overdue),
        };
        let lines = lines(&answer.headers);
        let reading = self.reading;
        (
            self.number,
            None,
            self.overdue,
            answer.kind,
            answer.status,
            lines,
            body(answer.body),
            answer.record,
            answer.denial,
            answer.reason,
            answer.never_sent,
            answer.stream.map(|body| Stream::new(body, reading)),
        )
    }
}

fn failed(number: u32, why: String, overdue: bool) -> Values {
    let none = String::new;
    (
        number,
        Some(why),
        overdue,
        "",
        0,
        none(),
        None,
        none(),
        None,
        None,
        false,
        None,
    )
}

/// Names in lower case and values in turn, a line each: neither can hold a line break.
fn lines(headers: &[(String, String)]) -> String {
    let length = headers.iter().map(|(name, value)| name.len() + value.len() + 2);
    let mut lines = String::with_capacity(length.sum());
    for (name, value) in headers {
        if !lines.is_empty() {
            lines.push('\n');
        }
        let at = lines.len();
        lines.push_str(name);
        if let Some(name) = lines.get_mut(at..) {
            name.make_ascii_lowercase();
        }
        lines.push('\n');
        lines.push_str(value);
    }
    lines
}

/// A body; `None` when it is empty. Text that begins with a byte order mark stays bytes, since readers differ on it.
fn body(body: Bytes) -> Option<Either<String, Buffer>> {
    if body.is_empty() {
        return None;
    }
    let text = body.len() <= LONGEST_TEXT && !body.starts_with(b"\xef\xbb\xbf");
    let body = Vec::from(body);
    if !text {
        return Some(Either::B(body.into()));
    }
    Some(match String::from_utf8(body) {
        Ok(text) => Either::A(text),
        Err(bytes) => Either::B(bytes.into_bytes().into()),
    })
}
