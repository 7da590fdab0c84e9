use super::*;

const NAMES: Names = Names {
    scalars: &["amount", "currency", "customer", "amount_to_capture"],
    nested: &["source"],
    maps: &["metadata"],
};

fn read(form: &str) -> Vec<(String, String)> {
    parse(form.as_bytes(), &NAMES).unwrap()
}

fn refusal(form: &str) -> String {
    let refusal = parse(form.as_bytes(), &NAMES).unwrap_err();
    assert_eq!(refusal.code, Code::RequestMalformed, "{form}");
    refusal.message
}

#[test]
fn rule_08_form_reads_what_the_sdks_write() {
    let pairs = read(
        "amount=2000&currency=usd&metadata[a b]=x%20y"
            .replace(' ', "+")
            .as_str(),
    );
    assert_eq!(pairs[2], ("metadata[a b]".to_owned(), "x y".to_owned()));
    let pairs = read("items[0][price]=p_1&items[0][quantity]=2&items[1][price]=p_2&expand%5B0%5D=charge");
    assert_eq!(pairs[3].0, "expand[0]");
    assert_eq!(read("expand[]=charge").len(), 1);
    assert_eq!(read("metadata=").len(), 1);
    assert_eq!(read("metadata[6735]=a&metadata[12]=b&metadata[x]=c").len(), 3);
    assert!(read("").is_empty());
}

#[test]
fn rule_08_form_duplicate_fields() {
    for form in [
        "amount=1&amount=2",
        "amount=1&am%6Funt=2",
        "metadata[a]=1&metadata%5Ba%5D=2",
        "expand[]=a&expand[]=b",
    ] {
        assert!(refusal(form).contains("twice"), "{form}");
    }
}

#[test]
fn rule_08_form_near_miss_money_names() {
    for form in [
        "Amount=1",
        "AMOUNT=1",
        "amountToCapture=1",
        "amount_=1",
        "_amount=1",
        "CUSTOMER=cus_1",
        "Source=tok",
        "Source[object]=card",
    ] {
        assert!(refusal(form).contains("looks like"), "{form}");
    }
    for form in [
        "[amount]=1",
        "amount]=1",
        "amount[=1",
        "amount%20=1",
        "+amount=1",
        "amo%00unt=1",
        "amount%C2%A0=1",
        "am\u{f6}unt=1",
        "amount.=1",
        "=1",
    ] {
        refusal(form);
    }
    assert_eq!(read("source[object]=card").len(), 1);
    assert_eq!(read("amount_details[tip][amount]=1").len(), 1);
}

#[test]
fn rule_08_form_scalars_take_no_brackets() {
    for form in [
        "amount[]=1",
        "amount[0]=1",
        "currency[a]=usd",
        "customer[id]=cus_1",
    ] {
        assert!(refusal(form).contains("single value"), "{form}");
    }
    assert!(refusal("shipping=x&shipping[name]=y").contains("brackets elsewhere"));
    assert!(refusal("a[b][c]=y&a[b]=x").contains("brackets elsewhere"));
}

#[test]
fn rule_08_form_separators_and_escapes() {
    for form in [
        "amount=1;currency=usd",
        "amount=1&&currency=usd",
        "&amount=1",
        "amount=1&",
        "amount",
        "amount=1&currency",
        "amount=%",
        "amount=%2",
        "amount=%zz",
        "amount=%FF",
        "description=a%00b",
        "description=a b",
        "description=a=b",
        "description=a\tb",
        "description=a\"b",
        "description=a#b",
        "description=caf\u{e9}",
        "_method=delete",
    ] {
        refusal(form);
    }
}

#[test]
fn rule_08_form_brackets() {
    for form in [
        "a[b=1",
        "a]b[=1",
        "a[b]c=1",
        "a[b]c[d]=1",
        "a[[b]]=1",
        "a[b][[c]]=1",
        "a[][b]=1",
        "a[b%0Ac]=1",
        "a[1][2][3][4][5][6][7][8][9]=1",
    ] {
        refusal(form);
    }
}

#[test]
fn rule_08_form_indices_are_canonical_and_contiguous() {
    for form in [
        "a[1]=x",
        "a[0]=x&a[2]=y",
        "a[1]=x&a[0]=y",
        "a[00]=x",
        "a[0]=x&a[01]=y",
        "a[0]=x&a[b]=y",
        "a[]=x&a[0]=y",
        "a[99999999999]=x",
        "a[0][b]=1&a[1][b]=2&a[0][c]=3",
    ] {
        refusal(form);
    }
}

#[test]
fn rule_08_form_limits() {
    let many = |n: usize| (0..n).map(|i| format!("a[{i}]=x")).collect::<Vec<_>>().join("&");
    assert_eq!(read(&many(MAX_PAIRS)).len(), MAX_PAIRS);
    refusal(&(many(MAX_PAIRS) + "&b=1"));
    let long = format!("a={}", "x".repeat(MAX_BYTES));
    refusal(&long);
}

#[test]
fn refusals_do_not_repeat_values() {
    let message = refusal("metadata[sk_live_123]=sk_live_456&metadata[sk_live_123]=1");
    assert!(!message.contains("sk_live"), "{message}");
    let message = refusal("description=sk_live_456%");
    assert!(!message.contains("sk_live"), "{message}");
}

#[test]
fn rule_10_numbers_are_judged_on_bytes() {
    assert_eq!(whole_number("1"), Some(1));
    assert_eq!(whole_number("999999999999"), Some(999_999_999_999));
    for text in [
        "",
        "0",
        "00",
        "05",
        "+5",
        "-5",
        "-0",
        " 5",
        "5 ",
        "5.0",
        "5e3",
        "0x5",
        "1_000",
        "null",
        "\u{661}",
        "1000000000000",
        "9223372036854775808",
    ] {
        assert_eq!(whole_number(text), None, "{text:?}");
    }
}

#[test]
fn rule_10_a_boolean_other_than_false_is_true() {
    assert!(!truth(Some("false"), true));
    for text in ["true", "", "False", "FALSE", "0", "no", "false "] {
        assert!(truth(Some(text), false), "{text:?}");
    }
    assert!(truth(None, true) && !truth(None, false));
}

#[test]
fn appended_fields_are_read_back() {
    let fields = [
        ("amount".to_owned(), "500".to_owned()),
        ("metadata[keybrake]".to_owned(), "a b&c=\u{e9}".to_owned()),
    ];
    let body = append(b"charge=ch_1", &fields);
    let pairs = parse(&body, &NAMES).unwrap();
    assert_eq!(pairs[1..], fields);
    assert_eq!(append(b"", &fields[..1]), b"amount=500");
}
