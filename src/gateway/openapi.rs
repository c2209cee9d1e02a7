//! The description of the gateway as OpenAPI 3.1: made of its operations and of the schemas of its kinds, and of nothing
//! else, so that it says what is served.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::operation::{Operation, Takes};
use crate::{job::Kind, runtime::registry::Registry, schema::Schema};

const TEXT: &str = "Jobs in over HTTP. A `202` is durable; an answer that says \"not accepted\" is true; problems are RFC 9457, \
                    with a stable `code` and, in `errors`, each problem with its place.";
/// Where the schemas of types are.
const COMPONENTS: &str = "/components/schemas";

/// Writes the description.
pub(super) fn document(operations: &[Operation], registry: &Registry) -> Value {
    let settings = || {
        SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = COMPONENTS.into();
            settings.meta_schema = None;
        })
    };
    let mut writer = Writer {
        taken: settings().for_deserialize().into_generator(),
        given: settings().for_serialize().into_generator(),
        components: Map::new(),
    };
    let mut paths = Map::new();
    for operation in operations {
        if operation.takes.iter().any(|(_, takes)| matches!(takes, Takes::EachKind)) {
            for (kind, registered) in registry.iter() {
                let path = operation.shown.replace("{kind}", kind.as_str());
                let described = writer.operation(operation, Some((kind, registered.handler.schema())));
                insert(&mut paths, path, operation, described);
            }
        } else {
            let described = writer.operation(operation, None);
            insert(&mut paths, operation.shown.to_owned(), operation, described);
        }
    }
    let Writer { mut taken, mut given, mut components } = writer;
    components.extend(taken.take_definitions(true));
    components.extend(given.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "warren",
            "version": env!("CARGO_PKG_VERSION"),
            "description": TEXT,
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": { "type": "http", "scheme": "bearer", "description": "A key of warren." },
                "user": { "type": "http", "scheme": "basic", "description": "The same as the name of the user, as SDKs send it." },
            },
        },
    })
}

fn insert(paths: &mut Map<String, Value>, path: String, operation: &Operation, described: Value) {
    if let Value::Object(methods) = paths.entry(path).or_insert_with(|| json!({})) {
        methods.insert(operation.method.as_str().to_ascii_lowercase(), described);
    }
}

struct Writer {
    /// What comes in.
    taken: SchemaGenerator,
    /// What goes out.
    given: SchemaGenerator,
    /// Those of kinds.
    components: Map<String, Value>,
}

impl Writer {
    fn operation(&mut self, operation: &Operation, kind: Option<(&Kind, &Schema)>) -> Value {
        let (id, summary) = match kind {
            None => (operation.id.to_owned(), operation.summary.to_owned()),
            Some((kind, _)) => (
                format!("{}_{}", operation.id, kind.as_str().replace(['.', '-'], "_")),
                format!("{} {kind}", operation.summary),
            ),
        };
        let mut written = Map::new();
        let mut set = |name: &str, value: Value| written.insert(name.to_owned(), value);
        set("operationId", id.into());
        set("summary", summary.into());
        set("tags", json!([operation.tag]));
        let scope = operation.scope.map(|scope| format!("Needs a key with the scope `{scope}`, once there are keys."));
        let text: Vec<_> =
            [operation.text].into_iter().chain(scope.as_deref()).filter(|text| !text.is_empty()).collect();
        if !text.is_empty() {
            set("description", text.join(" ").into());
        }
        if scope.is_some() {
            set("security", json!([{ "key": [] }, { "user": [] }]));
        }
        let parameters: Vec<_> = operation
            .parameters
            .iter()
            .map(|parameter| {
                json!({
                    "in": parameter.place,
                    "name": parameter.name,
                    "description": parameter.text,
                    "required": parameter.place == "path",
                    "schema": (parameter.schema)(&mut self.taken),
                })
            })
            .collect();
        if !parameters.is_empty() {
            set("parameters", parameters.into());
        }
        let taken: Map<_, _> = operation
            .takes
            .iter()
            .filter_map(|(media, takes)| {
                let schema = match takes {
                    Takes::This(schema) => schema(&mut self.taken).to_value(),
                    Takes::EachKind => kind.map(|(kind, schema)| component(&mut self.components, kind, schema))?,
                };
                Some(((*media).to_owned(), json!({ "schema": schema })))
            })
            .collect();
        if !taken.is_empty() {
            set("requestBody", json!({ "required": operation.needs_body, "content": taken }));
        }
        let mut answers = Map::new();
        for (status, answer) in &operation.answers {
            let content: Map<_, _> = answer
                .content
                .iter()
                .map(|(media, schema)| ((*media).to_owned(), json!({ "schema": schema(&mut self.given) })))
                .collect();
            let headers: Map<_, _> = answer
                .headers
                .iter()
                .map(|(name, text)| {
                    ((*name).to_owned(), json!({ "description": text, "schema": { "type": "string" } }))
                })
                .collect();
            let mut said = json!({ "description": answer.text });
            for (name, part) in [("content", content), ("headers", headers)] {
                if !part.is_empty() {
                    said[name] = part.into();
                }
            }
            answers.insert(status.to_string(), said);
        }
        set("responses", answers.into());
        written.into()
    }
}

/// Puts the schema of a kind among the components, and gives a reference to it. What it defines for itself goes there too,
/// under a name of its own: two kinds may each have a `Line`.
fn component(components: &mut Map<String, Value>, kind: &Kind, schema: &Schema) -> Value {
    let name = format!("{kind}.v{}", schema.version());
    let reference = json!({ "$ref": format!("#{COMPONENTS}/{name}") });
    if components.contains_key(&name) {
        return reference;
    }
    let mut document = schema.document().clone();
    rename(&mut document, &name);
    if let Value::Object(root) = &mut document {
        root.remove("$schema");
        root.remove("$id");
        if let Some(Value::Object(defined)) = root.remove("$defs") {
            components.extend(defined.into_iter().map(|(part, schema)| (format!("{name}.{part}"), schema)));
        }
    }
    components.insert(name, document);
    reference
}

fn rename(value: &mut Value, name: &str) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref") {
                match reference.strip_prefix("#/$defs/") {
                    Some(part) => *reference = format!("#{COMPONENTS}/{name}.{part}"),
                    None if reference == "#" => *reference = format!("#{COMPONENTS}/{name}"),
                    None => {}
                }
            }
            map.values_mut().for_each(|value| rename(value, name));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| rename(value, name)),
        _ => {}
    }
}
