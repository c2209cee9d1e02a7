//! The settings of events and their routes.

use std::str::FromStr;

use serde_json::Value as Json;
use toml::Value;

use super::layers::Layers;
use crate::{
    job::Tenant,
    route::{Glob, Route, Template},
};

/// Which events become which jobs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Events {
    /// By name.
    pub routes: Vec<Route>,
    /// What becomes of an event that none of them takes.
    pub unrouted: Unrouted,
}

/// What becomes of an event that no route takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unrouted {
    /// It is kept, as a job of kind `event.received`.
    #[default]
    Keep,
    /// It is refused.
    Refuse,
}

impl FromStr for Unrouted {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "keep" => Ok(Self::Keep),
            "refuse" => Ok(Self::Refuse),
            _ => Err("must be keep or refuse"),
        }
    }
}

pub(super) fn read(layers: &mut Layers) -> Events {
    let unrouted = layers.parsed(&["events", "unrouted"]).unwrap_or_default();
    let names = layers.names_under(&["route"]);
    Events { routes: names.into_iter().filter_map(|name| route(layers, name)).collect(), unrouted }
}

/// Everything of a route is read before anything of it is missed, so that all its mistakes are told.
fn route(layers: &mut Layers, name: String) -> Option<Route> {
    let setting = |key: &str| ["route".to_owned(), name.clone(), key.to_owned()].join(".");
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !(1..=64).contains(&name.len()) || !name.bytes().all(allowed) {
        let problem = "the name of a route is 1 to 64 of the characters A-Z a-z 0-9 _ -";
        layers.mistake("all in all", &format!("route.{name}"), problem);
    }
    let event_type = layers.required(&["route", &name, "type"], "the types of events that it takes, as in order.*");
    let event_type = event_type.and_then(|(text, origin)| match text.parse::<Glob>() {
        Ok(glob) => Some(glob),
        Err(error) => {
            layers.mistake(&origin, &setting("type"), error.to_string());
            None
        }
    });
    let source = layers.parsed(&["route", &name, "source"]).unwrap_or_else(Glob::everything);
    let tenant = match layers.text(&["route", &name, "tenant"]) {
        None => Some(None),
        Some((tenant, origin)) => {
            let tenant = Tenant::new(&tenant);
            tenant.map(Some).map_err(|rule| layers.mistake(&origin, &setting("tenant"), rule.to_string())).ok()
        }
    };
    let kind = layers.required(&["route", &name, "kind"], "the kind of job that an event becomes");
    let body = match layers.subtree(&["route", &name, "with"]) {
        None => Some(Template::data()),
        Some((value, origin)) => match template(value) {
            Ok(template) => Some(template),
            Err(problems) => {
                for (place, problem) in problems {
                    layers.mistake(&origin, &setting(&place), problem);
                }
                None
            }
        },
    };
    Some(Route { event_type: event_type?, source, tenant: tenant?, kind: kind?.0, body: body?, name })
}

fn template(value: Value) -> Result<Template, Vec<(String, String)>> {
    if !matches!(value, Value::Table(_) | Value::String(_)) {
        let problem = "must be a table of the job's fields, or a reference to one such as \"{{data}}\"";
        return Err(vec![("with".into(), problem.into())]);
    }
    let value = json(value).map_err(|problem| vec![("with".into(), problem)])?;
    let template = Template::parse("with", value);
    template.map_err(|bad| bad.into_iter().map(|bad| (bad.place, bad.problem)).collect())
}

fn json(value: Value) -> Result<Json, String> {
    Ok(match value {
        Value::String(text) => text.into(),
        Value::Integer(number) => number.into(),
        Value::Float(number) => {
            let number = serde_json::Number::from_f64(number);
            number.ok_or_else(|| "holds a number that is not finite, which JSON cannot say".to_owned())?.into()
        }
        Value::Boolean(value) => value.into(),
        Value::Datetime(time) => time.to_string().into(),
        Value::Array(items) => items.into_iter().map(json).collect::<Result<_, _>>().map(Json::Array)?,
        Value::Table(table) => {
            let entries = table.into_iter().map(|(key, value)| Ok((key, json(value)?)));
            entries.collect::<Result<_, String>>().map(Json::Object)?
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_toml(texts: &[&str]) -> (Events, Vec<String>) {
        let mut layers = Layers::default();
        for text in texts {
            layers.add_toml("file", text);
        }
        let events = read(&mut layers);
        let mistakes = layers.finish(&[]);
        (events, mistakes.iter().map(|mistake| format!("{}: {}", mistake.setting, mistake.problem)).collect())
    }

    #[test]
    fn a_route_is_read_with_everything_in_its_body() {
        let text = r#"
            [events]
            unrouted = "refuse"
            [route.orders]
            type = "order.*"
            source = "/shop*"
            tenant = "acme"
            kind = "a.b"
            with = { id = "{{id}}", n = [1, 2.5, { deep = "{{data.x}}" }], none = {}, empty = "", at = 2026-12-24 }
            [route.plain]
            type = "*"
            kind = "a.c"
            [route.whole]
            type = "*"
            kind = "a.c"
            with = "{{data.inner}}"
            [route.nothing]
            type = "*"
            kind = "a.c"
            with = {}
        "#;
        let (events, mistakes) = read_toml(&[text]);
        assert_eq!(mistakes, Vec::<String>::new());
        assert_eq!(events.unrouted, Unrouted::Refuse);
        let names: Vec<_> = events.routes.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["nothing", "orders", "plain", "whole"]);
        let event = json!({ "type": "order.paid", "source": "/shop/1", "id": "7", "data": { "x": [true], "inner": { "y": 1 } } });
        let body = |index: usize| events.routes[index].body(&event).expect("all of it is there");
        let orders =
            json!({ "id": "7", "n": [1, 2.5, { "deep": [true] }], "none": {}, "empty": "", "at": "2026-12-24" });
        assert_eq!((body(0), body(1), body(2)), (json!({}), orders, event["data"].clone()));
        assert_eq!(body(3), json!({ "y": 1 }));
        let acme = Tenant::new("acme").expect("a name");
        assert!(events.routes[1].takes(&acme, "order.paid", "/shop/1"));
        assert!(!events.routes[1].takes(&acme, "order.paid", "/other"));
        assert!(!events.routes[1].takes(&acme, "invoice.paid", "/shop/1"));
        assert!(!events.routes[1].takes(&Tenant::DEFAULT, "order.paid", "/shop/1"));
        assert!(events.routes[2].takes(&acme, "x", "y") && events.routes[2].takes(&Tenant::DEFAULT, "x", "y"));
    }

    #[test]
    fn a_later_layer_changes_one_field_of_a_body() {
        let first = "[route.r]\ntype = 'a'\nkind = 'b'\nwith = { url = 'one', text = 'x' }";
        let (events, mistakes) = read_toml(&[first, "[route.r.with]\nurl = 'two'"]);
        assert_eq!(mistakes, Vec::<String>::new());
        assert_eq!(events.routes[0].body(&json!({})), Ok(json!({ "url": "two", "text": "x" })));
    }

    #[test]
    fn every_mistake_of_every_route_is_told_at_once() {
        let text = r#"
            [events]
            unrouted = "drop"
            [route."a b"]
            type = "x"
            kind = "k"
            [route.empty]
            type = ""
            with = 7
            [route.bad]
            type = "x"
            kind = 5
            source = ""
            knid = "k"
            with = { a = "{{", b = ["{{nothing}}"], c = inf }
            [route.worse]
            type = "x"
            tenant = "A B"
            kind = "k"
            with = { a = "{{", b = ["{{nothing}}"] }
        "#;
        let (_, mistakes) = read_toml(&[text]);
        let settings: Vec<_> = mistakes.iter().filter_map(|mistake| mistake.split(':').next()).collect();
        assert_eq!(
            settings,
            [
                "events.unrouted",
                "route.a b",
                "route.bad.kind",
                "route.bad.with",
                "route.empty.type",
                "route.empty.kind",
                "route.empty.with",
                "route.worse.tenant",
                "route.worse.with.a",
                "route.worse.with.b.0",
                "route.bad.knid",
            ],
            "{mistakes:#?}"
        );
    }
}
