//! The little of API v2 that tests need: a list, and a write that is free. JSON in, JSON out, v2's error shape.

use serde_json::{Value, json};

use super::error::ApiError;
use super::routes;
use super::world::Ctx;

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    ListEvents,
    RetrieveEvent,
    CreateDestination,
    ListDestinations,
    DeleteDestination,
    MeterEvent,
}

static ROUTES: &[(&str, &str, Operation)] = &[
    ("GET", "/v2/core/events", Operation::ListEvents),
    ("GET", "/v2/core/events/*", Operation::RetrieveEvent),
    (
        "POST",
        "/v2/core/event_destinations",
        Operation::CreateDestination,
    ),
    ("GET", "/v2/core/event_destinations", Operation::ListDestinations),
    (
        "DELETE",
        "/v2/core/event_destinations/*",
        Operation::DeleteDestination,
    ),
    ("POST", "/v2/billing/meter_events", Operation::MeterEvent),
];

/// The operation of a method and path, and its ids.
pub(super) fn find<'a>(method: &str, segments: &[&'a str]) -> Option<(Operation, Vec<&'a str>)> {
    ROUTES.iter().find_map(|(verb, path, operation)| {
        let ids = (*verb == method).then(|| routes::ids(path, segments)).flatten()?;
        Some((*operation, ids))
    })
}

/// A v2 validation error.
pub(super) fn invalid(message: &str) -> ApiError {
    ApiError::request(message)
}

/// Runs an operation.
pub(super) fn run(ctx: &mut Ctx<'_>, operation: Operation, body: &Value) -> Result<Value, ApiError> {
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
    match operation {
        Operation::ListEvents => Ok(json!({"data": [], "next_page_url": null, "previous_page_url": null})),
        Operation::RetrieveEvent => Err(missing("event", ctx.id())),
        Operation::ListDestinations => {
            let data: Vec<Value> = ctx.world.destinations.values().cloned().collect();
            Ok(json!({"data": data, "next_page_url": null, "previous_page_url": null}))
        }
        Operation::CreateDestination => {
            let (Some(name), Some(kind)) = (text("name"), text("type")) else {
                return Err(invalid("Missing required field: name and type.").code("invalid_fields"));
            };
            let id = ctx.world.ids.next("ed_test");
            let object = json!({
                "id": id, "object": "v2.core.event_destination", "created": "2026-11-22T00:00:00.000Z",
                "description": text("description").unwrap_or_default(), "enabled_events": body.get("enabled_events"),
                "event_payload": text("event_payload"), "livemode": false, "metadata": body.get("metadata"),
                "name": name, "status": "enabled", "type": kind, "updated": "2026-11-22T00:00:00.000Z",
            });
            ctx.world.destinations.insert(id, object.clone());
            Ok(object)
        }
        Operation::DeleteDestination => {
            let id = ctx.id().to_owned();
            match ctx.world.destinations.remove(&id) {
                Some(_) => Ok(json!({"id": id, "object": "v2.core.event_destination"})),
                None => Err(missing("event destination", &id)),
            }
        }
        Operation::MeterEvent => {
            let Some(name) = text("event_name") else {
                return Err(invalid("Missing required field: event_name.").code("invalid_fields"));
            };
            let identifier = text("identifier").unwrap_or_else(|| ctx.world.ids.short("mev"));
            Ok(json!({
                "object": "v2.billing.meter_event", "created": "2026-11-22T00:00:00.000Z", "event_name": name,
                "identifier": identifier, "livemode": false, "payload": body.get("payload"),
                "timestamp": "2026-11-22T00:00:00.000Z",
            }))
        }
    }
}

fn missing(object: &str, id: &str) -> ApiError {
    ApiError::new(404, "invalid_request_error", format!("No such {object}: '{id}'")).code("not_found")
}
