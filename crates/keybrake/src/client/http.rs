//! Our own HTTP client: no redirects, no retries, TLS by rustls with the platform's verifier.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;

use super::body::{Fate, TimedBody};
use super::intime::{InTime, SendBefore};
use super::stream::{CUT_OFF, Incoming, TIMEOUT};
use super::wire::{NoReply, Wire};
use crate::brake::{Permit, Prepared, SendEnd};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::money::Usd;
use crate::vendors::Reply;

/// A longer reply is not read to its end.
pub(super) const MOST_REPLY_BYTES: usize = 64 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP clients of one process, without TLS for loopback and with TLS, each made on first use: one with TLS cannot be
/// made on a machine that has no CA certificates.
#[derive(Debug)]
pub(crate) struct Http {
    clock: Arc<dyn Clock>,
    plain: Clients,
    secure: Clients,
    /// What carries requests instead of them.
    wire: Option<Arc<dyn Wire>>,
}

#[derive(Debug, Default)]
struct Clients {
    shared: OnceLock<reqwest::Client>,
    fresh: OnceLock<reqwest::Client>,
}

/// Where connections come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    /// One that stands already, or a new one, which then serves others.
    Shared,
    /// A new one for each request, made in time for its permit.
    Fresh,
}

impl Http {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            plain: Clients::default(),
            secure: Clients::default(),
            wire: None,
        }
    }

    /// The same without a network.
    pub(super) fn over(mut self, wire: Arc<dyn Wire>) -> Self {
        self.wire = Some(wire);
        self
    }

    /// Sends one attempt and says how it ended, or how its reply begins if the body may be handed on as it arrives.
    /// Never retries, never follows a redirect.
    pub(crate) async fn send(&self, permit: &Permit) -> Sent {
        let request = &permit.request;
        if self.clock.boot_ms() >= permit.send_before_boot_ms {
            return Sent::Ended(SendEnd::NeverSent, None);
        }
        let (mut body, fate) = TimedBody::new(
            request.body.clone(),
            Arc::clone(&self.clock),
            permit.send_before_boot_ms,
        );
        let timeout = Duration::from_millis(u64::try_from(permit.request_ms).unwrap_or(0));
        let no_body = request.body.is_empty();
        if let Some(wire) = &self.wire {
            let carried = wire.exchange(request, &mut || body.leaves(), timeout).await;
            return match carried {
                Ok(reply) => Sent::Ended(SendEnd::Reply(reply), None),
                Err(failure) => Sent::Ended(Failure::Carried(failure).end(&fate, no_body), None),
            };
        }
        let body = (!no_body).then(|| reqwest::Body::wrap(body));
        let replied = if body.is_none() && leaves_in_time(permit) {
            let send_before = SendBefore {
                clock: Arc::clone(&self.clock),
                boot_ms: permit.send_before_boot_ms,
            };
            let exchange = self.exchange((request, Pool::Fresh), None, timeout);
            send_before.send(exchange).await.map(Replied::Whole)
        } else if permit.streams() {
            self.begin(request, body, timeout).await
        } else {
            let exchange = self.exchange((request, Pool::Shared), body, timeout);
            exchange.await.map(Replied::Whole)
        };
        match replied {
            Ok(Replied::Whole(reply)) => Sent::Ended(SendEnd::Reply(reply), None),
            Ok(Replied::Begun(head, incoming)) => Sent::Begun(head, incoming),
            Err(failure) => Sent::Ended(failure.end(&fate, no_body), failure.into_error()),
        }
    }

    /// Sends a read that needs no permit: lookups and reconciliation.
    pub(crate) async fn read(&self, request: &Prepared, timeout: Duration) -> Result<Reply, String> {
        if let Some(wire) = &self.wire {
            let carried = wire.exchange(request, &mut || true, timeout).await;
            return carried.map_err(|failure| failure.reason().to_owned());
        }
        self.exchange((request, Pool::Shared), None, timeout)
            .await
            .map_err(|failure| failure.reason())
    }

    async fn exchange(
        &self,
        (request, pool): (&Prepared, Pool),
        body: Option<reqwest::Body>,
        timeout: Duration,
    ) -> Result<Reply, Failure> {
        let request = self.request((request, pool), body)?.timeout(timeout);
        whole(request.send().await.map_err(Failure::Request)?).await
    }

    /// As [`exchange`](Self::exchange), with the body of a 2xx left to be read. The timeout is for the head, and then
    /// for each piece: how long a document takes is up to its length and its reader.
    async fn begin(
        &self,
        request: &Prepared,
        body: Option<reqwest::Body>,
        timeout: Duration,
    ) -> Result<Replied, Failure> {
        let request = self.request((request, Pool::Shared), body)?;
        let until_head = async {
            let response = request.send().await.map_err(Failure::Request)?;
            if response.status().is_success() {
                let head = head(&response);
                return Ok(Replied::Begun(head, Incoming::new(response, timeout)));
            }
            whole(response).await.map(Replied::Whole)
        };
        tokio::time::timeout(timeout, until_head)
            .await
            .unwrap_or(Err(Failure::Slow))
    }

    fn request(
        &self,
        (request, pool): (&Prepared, Pool),
        body: Option<reqwest::Body>,
    ) -> Result<reqwest::RequestBuilder, Failure> {
        let client = self
            .client(&request.url, pool)
            .map_err(|error| Failure::Unsent(error.to_string()))?;
        let method = reqwest::Method::from_bytes(request.method.as_bytes())
            .map_err(|_| Failure::Unsent("method".to_owned()))?;
        let mut builder = client.request(method, &request.url);
        for (name, value) in &request.headers {
            let mut value = reqwest::header::HeaderValue::from_str(value)
                .map_err(|_| Failure::Unsent(format!("header {name}")))?;
            value.set_sensitive(true);
            builder = builder.header(name.as_str(), value);
        }
        if let Some(body) = body {
            builder = builder.header("content-length", request.body.len()).body(body);
        }
        Ok(builder)
    }

    fn client(&self, url: &str, pool: Pool) -> Result<&reqwest::Client> {
        let (clients, secure) = if url.starts_with("http://") {
            (&self.plain, false)
        } else {
            (&self.secure, true)
        };
        let slot = match pool {
            Pool::Shared => &clients.shared,
            Pool::Fresh => &clients.fresh,
        };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let client = build(secure, pool)?;
        Ok(slot.get_or_init(|| client))
    }
}

/// How sending a permit went.
pub(super) enum Sent {
    /// It is over.
    Ended(SendEnd, Option<reqwest::Error>),
    /// The head of a 2xx is there; its body follows.
    Begun(Reply, Incoming),
}

enum Replied {
    Whole(Reply),
    Begun(Reply, Incoming),
}

fn head(response: &reqwest::Response) -> Reply {
    let headers = response.headers().iter();
    Reply {
        status: response.status().as_u16(),
        headers: headers
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect(),
        body: Bytes::new(),
    }
}

async fn whole(response: reqwest::Response) -> Result<Reply, Failure> {
    let head = head(&response);
    let body = http_body_util::Limited::new(reqwest::Body::from(response), MOST_REPLY_BYTES);
    let body = body.collect().await.map_err(|_| Failure::Body)?.to_bytes();
    Ok(Reply { body, ..head })
}

/// Why an exchange gave no reply.
enum Failure {
    Unsent(String),
    Request(reqwest::Error),
    /// No head in time.
    Slow,
    Body,
    Carried(NoReply),
}

impl Failure {
    fn end(&self, fate: &Fate, no_body: bool) -> SendEnd {
        match self {
            Self::Unsent(_) => SendEnd::NeverSent,
            Self::Request(error) if error.is_connect() => SendEnd::NeverSent,
            Self::Carried(NoReply::NoConnection) => SendEnd::NeverSent,
            Self::Request(_) | Self::Slow | Self::Carried(_) if !no_body && !fate.taken() => {
                SendEnd::NeverSent
            }
            Self::Request(_) | Self::Slow | Self::Body | Self::Carried(_) => SendEnd::Lost {
                reason: self.reason(),
            },
        }
    }

    fn into_error(self) -> Option<reqwest::Error> {
        match self {
            Self::Request(error) => Some(error.without_url()),
            Self::Unsent(_) | Self::Slow | Self::Body | Self::Carried(_) => None,
        }
    }

    fn reason(&self) -> String {
        match self {
            Self::Unsent(what) => format!("unsent: {what}"),
            Self::Slow => TIMEOUT.to_owned(),
            Self::Request(error) if error.is_timeout() => TIMEOUT.to_owned(),
            Self::Request(error) if error.is_connect() => "no_connection".to_owned(),
            Self::Request(_) => "connection_lost".to_owned(),
            Self::Body => CUT_OFF.to_owned(),
            Self::Carried(failure) => failure.reason().to_owned(),
        }
    }
}

pub(super) fn build(secure: bool, pool: Pool) -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true);
    let builder = match pool {
        Pool::Shared => builder,
        Pool::Fresh => builder
            .pool_max_idle_per_host(0)
            .http1_only()
            .connector_layer(InTime),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = if secure {
        // Another library may have installed a provider already; either will do.
        let _ = rustls::crypto::CryptoProvider::install_default(Arc::unwrap_or_clone(provider));
        builder
    } else {
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::new(ErrorKind::Internal, "no TLS versions").because(e))?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        builder.no_proxy().http1_only().tls_backend_preconfigured(config)
    };
    builder.build().map_err(|e| {
        Error::config(
            "cannot make an HTTP client; are the machine's CA certificates installed (ca-certificates)?",
        )
        .because(e)
    })
}

/// Whether it may not leave once its permit is over: it costs something, by whatever method, or it can change something
/// at the vendor. Only a read that costs nothing may leave late.
fn leaves_in_time(permit: &Permit) -> bool {
    permit.amount() > Usd::ZERO || !matches!(permit.request.method.as_str(), "GET" | "HEAD")
}
