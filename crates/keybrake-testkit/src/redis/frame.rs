//! Where a request or a reply ends in a stream of bytes (RESP2 and RESP3), so that the relay can tell which reply
//! belongs to which request.

/// The length in bytes of the first whole request; `None` until it has all arrived.
pub(super) fn request(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        b'*' => value(bytes, 0),
        _ => line(bytes, 0).map(|(_, end)| end), // an inline command
    }
}

/// The length in bytes of the first whole reply; `None` until it has all arrived.
pub(super) fn reply(bytes: &[u8]) -> Option<usize> {
    value(bytes, 0)
}

/// Whether this reply answers no request: it was pushed.
pub(super) fn is_push(reply: &[u8]) -> bool {
    reply.first() == Some(&b'>')
}

/// The end of the value that starts at `start`.
fn value(bytes: &[u8], start: usize) -> Option<usize> {
    let (header, end) = line(bytes, start)?;
    let (kind, rest) = header.split_first()?;
    let count = || std::str::from_utf8(rest).ok()?.parse::<i64>().ok();
    let many = |values: usize| (0..values).try_fold(end, |end, _| value(bytes, end));
    match kind {
        b'$' | b'!' | b'=' => match usize::try_from(count()?) {
            Ok(length) => {
                let end = end.checked_add(length)?.checked_add(2)?;
                (end <= bytes.len()).then_some(end)
            }
            Err(_) => Some(end), // nil
        },
        b'*' | b'~' | b'>' => many(usize::try_from(count()?).unwrap_or(0)),
        b'%' => many(usize::try_from(count()?).ok()?.checked_mul(2)?),
        // Attributes stand before the value that they describe.
        b'|' => many(usize::try_from(count()?).ok()?.checked_mul(2)?.checked_add(1)?),
        _ => Some(end),
    }
}

/// A line without its end, and where the next one starts.
fn line(bytes: &[u8], start: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(start..)?;
    let length = rest.iter().position(|byte| *byte == b'\n')?;
    let text = rest.get(..length)?;
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    Some((text, start.checked_add(length)?.checked_add(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every whole value is found, with what follows it, and no beginning of it is taken for the whole.
    #[test]
    fn a_frame_ends_where_the_protocol_says() {
        for whole in [
            "+OK\r\n",
            "-ERR no\r\n",
            ":17\r\n",
            "$-1\r\n",
            "$5\r\na\r\nbc\r\n",
            "*-1\r\n",
            "*0\r\n",
            "*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
            "_\r\n",
            "#t\r\n",
            ",1.5\r\n",
            "=7\r\ntxt:abc\r\n",
            "~2\r\n+a\r\n+b\r\n",
            "%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
            ">2\r\n+message\r\n+x\r\n",
            "|1\r\n+ttl\r\n:3\r\n$1\r\na\r\n",
        ] {
            let more = format!("{whole}+OK\r\n");
            assert_eq!(reply(more.as_bytes()), Some(whole.len()), "{whole:?}");
            for cut in 0..whole.len() {
                assert_eq!(reply(&whole.as_bytes()[..cut]), None, "{whole:?} cut at {cut}");
            }
        }
        assert_eq!(request(b"*1\r\n$4\r\nPING\r\n*1"), Some(14));
        assert_eq!(request(b"PING\r\nPING"), Some(6));
    }
}
