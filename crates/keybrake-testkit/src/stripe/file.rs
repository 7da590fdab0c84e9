//! Uploaded files: enough to take a multipart form and answer with a file object.

use bytes::Bytes;
use serde_json::{Value, json};

use super::error::ApiError;
use super::form::Params;
use super::http::Reply;
use super::list;
use super::number::u64_of;
use super::world::{Ctx, Record};

const YEAR_S: i64 = 365 * 24 * 3_600;

/// An uploaded file.
#[derive(Clone, Debug)]
pub(super) struct File {
    id: String,
    purpose: String,
    name: String,
    content: Bytes,
    created: i64,
}

impl Record for File {
    const NOUN: &'static str = "file";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        let extension = self
            .name
            .rsplit_once('.')
            .map_or("bin", |(_, extension)| extension);
        json!({
            "id": self.id, "object": "file", "created": self.created, "expires_at": self.created.saturating_add(YEAR_S),
            "filename": self.name, "links": {"object": "list", "data": [], "has_more": false,
                "url": format!("/v1/file_links?file={}", self.id)},
            "purpose": self.purpose, "size": u64_of(self.content.len()), "title": null, "type": extension,
            "url": format!("https://files.stripe.com/v1/files/{}/contents", self.id),
        })
    }
}

/// The file part of a multipart form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upload {
    pub(super) name: String,
    pub(super) content: Bytes,
}

/// `POST /v1/files`.
pub(super) fn create(ctx: &mut Ctx<'_>, params: &Params, upload: Option<&Upload>) -> Result<Value, ApiError> {
    let purpose = params.required("purpose")?.to_owned();
    let Some(upload) = upload else {
        return Err(ApiError::missing("file"));
    };
    let file = File {
        id: ctx.world.ids.next("file"),
        purpose,
        name: upload.name.clone(),
        content: upload.content.clone(),
        created: ctx.now(),
    };
    let object = file.render();
    ctx.data().files.insert(file);
    Ok(object)
}

/// `GET /v1/files/{id}`.
pub(super) fn retrieve(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    Ok(ctx.named(|data| &mut data.files)?.render())
}

/// `GET /v1/files/{id}/contents`, with a length.
pub(super) fn contents(ctx: &mut Ctx<'_>) -> Result<Reply, ApiError> {
    let id = ctx.id().to_owned();
    Ok(Reply {
        status: 200,
        headers: vec![("content-type", "application/octet-stream".to_owned())],
        body: ctx.data().files.find(&id)?.content.clone(),
        streamed: false,
    })
}

/// `GET /v1/files`.
pub(super) fn list(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let purpose = params.text("purpose")?;
    list::page(&ctx.data().files, params, "/v1/files", |file| {
        purpose.is_none_or(|word| file.purpose == word)
    })
}

/// Reads `multipart/form-data`: text fields into parameters, and the one file.
pub(super) fn multipart(content_type: &str, body: &[u8]) -> Result<(Params, Option<Upload>), ApiError> {
    let malformed = || ApiError::request("Invalid request: the multipart form is malformed");
    let boundary = content_type
        .split(';')
        .find_map(|part| part.trim().strip_prefix("boundary="))
        .map(|boundary| boundary.trim_matches('"'))
        .filter(|boundary| !boundary.is_empty())
        .ok_or_else(malformed)?;
    let mut params = Params::default();
    let mut upload = None;
    let mark = format!("--{boundary}").into_bytes();
    let mut rest = after(body, &mark).ok_or_else(malformed)?;
    while !rest.starts_with(b"--") {
        let part = rest.strip_prefix(b"\r\n").ok_or_else(malformed)?;
        let end = find(part, &[b"\r\n", mark.as_slice()].concat()).ok_or_else(malformed)?;
        let (part, next) = part.split_at(end);
        let split = find(part, b"\r\n\r\n").ok_or_else(malformed)?;
        let (head, content) = part.split_at(split);
        let content = content.get(4..).unwrap_or_default();
        let head = String::from_utf8_lossy(head);
        let name = quoted(&head, "name=").ok_or_else(malformed)?;
        if let Some(filename) = quoted(&head, "filename=") {
            upload = Some(Upload {
                name: filename,
                content: Bytes::copy_from_slice(content),
            });
        } else {
            params.set(&name, &String::from_utf8_lossy(content))?;
        }
        rest = after(next, &mark).ok_or_else(malformed)?;
    }
    Ok((params, upload))
}

/// The value of `name="…"` in a part's head.
fn quoted(head: &str, name: &str) -> Option<String> {
    head.split([';', '\n'])
        .map(str::trim)
        .find_map(|item| item.strip_prefix(name))
        .map(|value| value.trim_matches('"').to_owned())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn after<'a>(haystack: &'a [u8], needle: &[u8]) -> Option<&'a [u8]> {
    haystack.get(find(haystack, needle)?.checked_add(needle.len())?..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_multipart_form_is_read() {
        let body = b"--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nidentity_document\r\n--XX\r\n\
            Content-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\n\x00\r\n--\x01\r\n--XX--\r\n";
        let (params, upload) = multipart("multipart/form-data; boundary=XX", body).unwrap();
        assert_eq!(params.text("purpose").unwrap(), Some("identity_document"));
        assert_eq!(
            upload,
            Some(Upload {
                name: "a.png".to_owned(),
                content: Bytes::from_static(b"\x00\r\n--\x01")
            })
        );
        assert!(multipart("multipart/form-data; boundary=YY", body).is_err());
        assert!(multipart("multipart/form-data", body).is_err());
    }
}
