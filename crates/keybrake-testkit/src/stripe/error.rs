//! Errors in the shape that Stripe sends and its SDKs read.

use serde_json::{Map, Value, json};

/// An error reply. It is built where the mistake is found and rendered once.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub(super) status: u16,
    /// Whether the endpoint had begun to execute, so that the reply is kept under the idempotency key and replayed.
    /// Parameters that fail validation are not kept (Stripe: "most 400s that sent invalid parameters").
    pub(super) kept: bool,
    fields: Map<String, Value>,
}

impl ApiError {
    /// An error of a given HTTP status and type.
    pub(super) fn new(status: u16, kind: &str, message: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("message".to_owned(), Value::String(message.into()));
        fields.insert("type".to_owned(), kind.into());
        Self {
            status,
            kept: false,
            fields,
        }
    }

    /// 400, the request as a whole.
    pub(super) fn request(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    /// 400, one parameter.
    pub(super) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::request(message).param(param)
    }

    /// 400, a required parameter is not there.
    pub(super) fn missing(param: &str) -> Self {
        Self::invalid(param, format!("Missing required param: {param}.")).code("parameter_missing")
    }

    /// 400, a parameter was sent empty that cannot be unset.
    pub(super) fn empty(param: &str) -> Self {
        Self::invalid(
            param,
            format!(
                "You passed an empty string for '{param}'. We assume empty values are an attempt to unset a parameter; \
                 however '{param}' cannot be unset. You should remove '{param}' from your request or supply a non-empty value."
            ),
        )
        .code("parameter_invalid_empty")
    }

    /// 400, not an integer, or out of range.
    pub(super) fn invalid_integer(param: &str, value: &str) -> Self {
        Self::invalid(param, format!("Invalid integer: {value}")).code("parameter_invalid_integer")
    }

    /// 404, the object in the path does not exist.
    pub(super) fn no_such(object: &str, id: &str) -> Self {
        let mut error = Self::no_such_param("id", object, id);
        error.status = 404;
        error
    }

    /// 400, the object named in a parameter does not exist.
    pub(super) fn no_such_param(param: &str, object: &str, id: &str) -> Self {
        Self::invalid(param, format!("No such {object}: '{id}'")).code("resource_missing")
    }

    /// 400, the request is well formed and the state of things forbids it. Kept: the endpoint had begun to execute.
    pub(super) fn state(code: &str, message: impl Into<String>) -> Self {
        let mut error = Self::request(message).code(code);
        error.kept = true;
        error
    }

    /// 400 for the state of things, where Stripe gives no code.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        let mut error = Self::request(message);
        error.kept = true;
        error
    }

    /// 402, a card said no. Kept and replayed.
    pub(super) fn card(code: &str, decline_code: Option<&str>, message: &str) -> Self {
        let mut error = Self::new(402, "card_error", message).code(code);
        error.kept = true;
        match decline_code {
            Some(decline) => error.with("decline_code", decline),
            None => error,
        }
    }

    /// 500 as Stripe words it.
    pub(super) fn internal() -> Self {
        let mut error = Self::new(
            500,
            "api_error",
            "An unknown error occurred. If the problem persists, contact us at support@stripe.com.",
        );
        error.kept = true;
        error
    }

    /// Adds the code and the page that explains it.
    pub(super) fn code(self, code: &str) -> Self {
        let page = format!("https://stripe.com/docs/error-codes/{}", code.replace('_', "-"));
        self.with("code", code).with("doc_url", page)
    }

    /// Names the parameter.
    pub(super) fn param(self, param: &str) -> Self {
        self.with("param", param)
    }

    /// Adds a field, such as the `payment_intent` that a declined confirm reports.
    pub(super) fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    /// The JSON body.
    pub(super) fn body(&self) -> Value {
        json!({ "error": self.fields })
    }

    /// The error as an object, as `last_payment_error` holds it.
    pub(super) fn object(&self) -> Value {
        Value::Object(self.fields.clone())
    }
}
