//! The seam for clients that users build themselves with `reqwest-middleware`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Extensions;
use reqwest_middleware::{Middleware, Next};

use super::{Answer, Denied, Opened, Shell};
use crate::brake::{CallContext, KeyOrigin};
use crate::request::Call;

/// Attach it last (innermost), with `reqwest-retry` outside: then a retry is an attempt of the same spend.
///
/// It sends over Keybrake's own HTTP client, which follows no redirect and retries nothing, so that the bytes
/// that were judged are the bytes that leave; of the client it is attached to, only the middlewares outside it
/// take part.
#[derive(Clone, Debug)]
pub struct Enforcement {
    shell: Arc<Shell>,
    token: Option<crate::token::Token>,
    run: Option<String>,
    wait: Duration,
}

/// Request extension: the step of the run that this call is. The same step and fields are the same spend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step(String);

impl Step {
    /// A step by name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
}

/// Request extension: the item of the run that this call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item(String);

impl Item {
    /// An item by name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
}

impl Enforcement {
    /// Governs calls that carry their own token (`Authorization: Bearer vault_key_…`).
    pub const fn new(shell: Arc<Shell>) -> Self {
        Self {
            shell,
            token: None,
            run: None,
            wait: Duration::ZERO,
        }
    }

    /// Puts this token on calls that carry none.
    #[must_use]
    pub fn with_token(mut self, token: crate::token::Token) -> Self {
        self.token = Some(token);
        self
    }

    /// The run of calls whose key is bound to none.
    #[must_use]
    pub fn with_run(mut self, run: impl Into<String>) -> Self {
        self.run = Some(run.into());
        self
    }

    /// How long a `cap_held` refusal may be waited out.
    #[must_use]
    pub const fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    fn call(&self, request: &reqwest::Request) -> Result<Call, Box<Denied>> {
        let body = match request.body() {
            None => Bytes::new(),
            Some(body) => body.as_bytes().map(Bytes::copy_from_slice).ok_or_else(|| {
                Box::new(Denied::new(crate::policy::Denial::new(
                    crate::policy::Code::RequestMalformed,
                    "a streamed request body cannot be judged before it is sent; give the whole body",
                )))
            })?,
        };
        let mut headers = Vec::with_capacity(request.headers().len().saturating_add(1));
        for (name, value) in request.headers() {
            // A value that is not text is shown to the judge as such, and refused there.
            headers.push((
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ));
        }
        if let (Some(token), false) = (&self.token, request.headers().contains_key("authorization")) {
            headers.push(("authorization".to_owned(), format!("Bearer {}", token.expose())));
        }
        Ok(Call {
            method: request.method().as_str().to_owned(),
            url: request.url().as_str().to_owned(),
            headers,
            body,
        })
    }

    fn context(&self, extensions: &Extensions) -> CallContext {
        CallContext {
            run: self.run.clone(),
            step: extensions.get::<Step>().map(|step| step.0.clone()),
            item: extensions.get::<Item>().map(|item| item.0.clone()),
            key_origin: KeyOrigin::Caller,
            context: serde_json::Map::new(),
        }
    }
}

#[async_trait]
impl Middleware for Enforcement {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        _next: Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        let call = self
            .call(&request)
            .map_err(|denied| anyhow::Error::new(*denied))?;
        let opened = self
            .shell
            .open(call, self.context(extensions), self.wait)
            .await
            .map_err(anyhow::Error::new)?;
        let answer = match opened {
            Opened::Ended(answer) => *answer,
            Opened::Stream(stream) => {
                let (status, headers) = (stream.status(), stream.headers().to_vec());
                return response(status, &headers, reqwest::Body::wrap(*stream));
            }
        };
        match answer {
            Answer::Denied { denial, .. } => Err(anyhow::Error::new(Denied::new(*denial)).into()),
            Answer::Lost {
                error: Some(error), ..
            } => Err(error.into()),
            Answer::Lost {
                reason,
                never_sent,
                record,
                error: None,
            } => Err(anyhow::Error::new(Lost {
                reason,
                never_sent,
                call_id: record.call_id,
            })
            .into()),
            Answer::Reply { reply, .. } => response(reply.status, &reply.headers, reply.body),
        }
    }
}

fn response(
    status: u16,
    headers: &[(String, String)],
    body: impl Into<reqwest::Body>,
) -> reqwest_middleware::Result<reqwest::Response> {
    let mut response = http::Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name.as_str(), value.as_str());
    }
    Ok(response.body(body.into()).map_err(anyhow::Error::new)?.into())
}

/// No reply from the vendor. Retry outside [`Enforcement`] freely: a retry joins this call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no reply from the vendor ({reason}); {}", if *.never_sent { "nothing was sent" } else { "it may have happened: the amount stays held" })]
pub struct Lost {
    /// In a word.
    pub reason: String,
    /// Whether it is certain that nothing left.
    pub never_sent: bool,
    /// The call's id.
    pub call_id: String,
}
