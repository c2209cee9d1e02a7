//! Whether the routes of the configuration lead to what this build has.

use serde_json::Value;

use crate::{
    config::{Events, Mistake},
    route::Route,
    runtime::registry::Registry,
};

/// Everything that is wrong with the routes, as far as it can be told before an event comes.
pub fn check_routes(events: &Events, registry: &Registry) -> Vec<Mistake> {
    events.routes.iter().flat_map(|route| check(route, registry)).collect()
}

fn check(route: &Route, registry: &Registry) -> Vec<Mistake> {
    let wrong = |key: &str, problem| {
        let setting = format!("route.{}.{key}", route.name);
        Mistake { origin: "all in all".into(), setting, problem }
    };
    let Some((kind, registered)) = registry.get(&route.kind) else {
        let kinds: Vec<_> = registry.kinds().iter().map(ToString::to_string).collect();
        return vec![wrong("kind", format!("there is no such kind; there are {}", kinds.join(", ")))];
    };
    let Some(given) = route.body.fields() else { return Vec::new() };
    let schema = registered.handler.schema().document();
    let mut mistakes = Vec::new();
    if schema["additionalProperties"] == false
        && let Some(fields) = schema["properties"].as_object()
    {
        for field in given.iter().filter(|field| !fields.contains_key(**field)) {
            let all: Vec<_> = fields.keys().map(String::as_str).collect();
            mistakes.push(wrong("with", format!("{kind} has no field `{field}`; it has {}", all.join(", "))));
        }
    }
    for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !given.contains(&field) {
            mistakes.push(wrong("with", format!("the field `{field}` of {kind} is missing")));
        }
    }
    mistakes
}
