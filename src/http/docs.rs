//! The API's description: OpenAPI from the routes themselves, Swagger UI, and a page for each kind of problem.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::Uri;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{Html, IntoResponse};
use bytes::Bytes;
use utoipa::ToSchema;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::{
    ContactBuilder, ContentBuilder, Header, InfoBuilder, LicenseBuilder, Object, ObjectBuilder, OpenApi,
    OpenApiBuilder, Ref, RefOr, Required, Response, ResponseBuilder, Schema, ServerBuilder, Type,
};
use utoipa::{PartialSchema, openapi::tag::TagBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::Api;
use super::problem::{BadParameter, CheckBody, Code, FailedReplica, Problem, ProblemBody};
use super::query::Query;
use super::{bodies, routes as all_routes};

/// The levels.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) enum LevelName {
    One,
    Quorum,
    All,
    Linearizable,
}

/// Those that a write which the key's register decides may be asked at.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) enum RegisterLevelName {
    Quorum,
    Linearizable,
}

/// How a record may be seen.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) enum ViewName {
    Record,
}

/// A flag that is on by being there. Written out because the macro cannot name an empty text.
#[derive(Debug)]
pub(super) struct Flag;

impl PartialSchema for Flag {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["", "true", "false"])).into()
    }
}

impl ToSchema for Flag {}

// Exactly what `query::timeout` takes. Optional parameters have no examples: Swagger UI would fill them in and send them.
/// A duration.
#[derive(Debug, ToSchema)]
#[schema(value_type = String,
    pattern = "^(([5-9][0-9]|[1-9][0-9]{2,3}|[1-5][0-9]{4}|60000)ms|([1-9]|[1-5][0-9]|60)s|1m)$")]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) struct TimeoutText(String);

// Exactly what `query::ttl` takes.
/// A time to live.
#[derive(Debug, ToSchema)]
#[schema(value_type = String,
    pattern = "^[1-9]([0-9]{0,11}ms|[0-9]{0,8}s|[0-9]{0,6}m|[0-9]{0,4}h|[0-9]{0,3}d)$")]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) struct TtlText(String);

// Exactly what `query::new_end` takes.
/// A time to live, or none.
#[derive(Debug, ToSchema)]
#[schema(value_type = String,
    pattern = "^([1-9]([0-9]{0,11}ms|[0-9]{0,8}s|[0-9]{0,6}m|[0-9]{0,4}h|[0-9]{0,3}d)|none)$")]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) struct NewEndText(String);

// Exactly what `etag::tags` takes, but for the number of tags.
/// ETags, as `If-Match` and `If-None-Match` list them, or `*`.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = "entity-tags",
    pattern = "^(\\*|[ \\t,]*(W/)?\"[!#-~\\u0080-\\u00ff]*\"([ \\t]*,[ \\t,]*(W/)?\"[!#-~\\u0080-\\u00ff]*\")*[ \\t,]*)$")]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) struct EtagsText(String);

/// A name for a request.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, pattern = "^[!-~]{1,255}$")]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) struct IdempotencyText(String);

/// An operation's id.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = "uuid")]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) struct OperationId(String);

/// A key.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, example = "name", min_length = 1)]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) struct KeyText(String);

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(openapi)).routes(routes!(problem_page))
}

/// This description
///
/// The API in OpenAPI 3.1, as this node serves it.
#[utoipa::path(get, path = "/openapi.json", operation_id = "getOpenApi", tag = "docs",
    responses((status = 200, description = "The description.", body = Object, content_type = "application/json")))]
async fn openapi(uri: Uri) -> Result<impl IntoResponse, Problem> {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(openapi_json()));
    Query::new(uri.query(), &[]).finish()?;
    Ok(([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-cache")], TEXT.clone()))
}

/// A kind of problem
///
/// The page that a problem's `type` leads to.
#[utoipa::path(get, path = "/problems/{code}", operation_id = "getProblemPage", tag = "docs",
    params(("code" = String, Path, description = "The problem's `code`.", example = "unavailable")),
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
async fn problem_page(uri: Uri) -> Result<impl IntoResponse, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let known = uri
        .path()
        .strip_prefix("/problems/")
        .and_then(Code::named)
        .ok_or_else(|| Problem::new(Code::NoSuchPage, "there is no such kind of problem"))?;
    let about = known.about();
    let again =
        if about.retryable { "The same request may succeed later." } else { "The same request will fail again." };
    Ok(Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n\
         <h1>{title}</h1>\n<p>Status {status}, code <code>{name}</code>.</p>\n<p>{help}</p>\n<p>{again}</p>\n</html>\n",
        title = about.title,
        status = about.status,
        name = about.name,
        help = about.help,
    )))
}

/// Swagger UI, from the binary alone: without its validator badge, which asks a server elsewhere.
pub(super) fn swagger_ui() -> Router<Arc<Api>> {
    let config = Config::new(["/openapi.json"]).validator_url("none").try_it_out_enabled(true).deep_linking(true);
    SwaggerUi::new("/swagger-ui").config(config).into()
}

/// The description's frame, which the routes fill.
pub(super) fn base() -> OpenApi {
    let tag = |name: &str, help: &str| TagBuilder::new().name(name).description(Some(help)).build();
    let info = InfoBuilder::new()
        .title("a3.store")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(INTRODUCTION))
        .license(Some(LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build()))
        .contact(Some(ContactBuilder::new().name(Some("a3.store")).url(Some("https://a3.store")).build()))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .servers(Some([ServerBuilder::new().url("/").description(Some("The node that serves this page")).build()]))
        .tags(Some([
            tag("kv", "Values under keys."),
            tag("moving", "All of it out, and in."),
            tag("cluster", "The cluster as one node sees it."),
            tag("operations", "Long-running work."),
            tag("observe", "Whether a node is well."),
            tag("docs", "The API's description."),
        ]))
        .build()
}

const INTRODUCTION: &str = "A distributed key-value store. Ask any node: it finds the replicas of a key. \
Values are plain bytes; every answer says what was really done. Whatever is not a success is a problem (RFC 9457, \
`application/problem+json`). How much agreement a request waits for is its own choice (`consistency`); writes with a \
condition, and requests that ask for `linearizable`, are linearizable for each key. `X-Request-Id` and `traceparent` \
are accepted and returned.";

/// Problems that any request may be answered with.
const COMMON: &[(u16, &str)] = &[
    (400, "The request is malformed: its head, its key or its query."),
    (414, "The request target, or the key in it, is too long."),
    (431, "The headers are too large."),
    (500, "A defect in the node."),
    (503, "Overloaded, not ready, or not enough replicas can be reached; `Retry-After` says when to come again."),
];
const NOT_FOUND: (u16, &str) = (404, "There is nothing at this path.");
const NO_OPERATION: (u16, &str) = (404, "The node knows no such operation.");
const NO_MEMBER: (u16, &str) = (404, "There is no such member.");
const NO_CHANGE: (u16, &str) = (404, "No change of the topology is under way.");
const UNFIT: (u16, &str) = (
    409,
    "Nothing was begun. `change-under-way`: there is one change at a time; `change-unfit`: the detail says why there can be no such one.",
);
const UNDECIDED: (u16, &str) = (504, "No majority of the members answered in time: it may have been decided, or not.");
const WATCH_GONE: (u16, &str) =
    (410, "What changed since the cursor is remembered no more: watch anew, and list the keys.");
const NO_VALUE: (u16, &str) =
    (404, "The key has no value; for reads `A3-Deleted: true` and `A3-Version` where it was deleted or has expired.");
const CROSS_SITE: (u16, &str) = (403, "A browser sent the write for a page of another origin.");
const TIMED_OUT: (u16, &str) = (
    504,
    "Not enough replicas answered in time; for a write `outcome` says what is known of it: `unknown` may be found later, or never.",
);
const READ_UNMET: (u16, &str) = (412, "The value is not the one that If-Match or If-Unmodified-Since asks about.");
const WRITE_UNMET: (u16, &str) = (412, UNMET_HELP);
const UNMET_HELP: &str = "The condition is false; definite: nothing was written. A problem, or the value that stands there where that is preferred.";
const CONFLICT: (u16, &str) = (409, CONFLICT_HELP);
const CONFLICT_HELP: &str = "Definite: nothing was written. `conflict`: other conditional writes were always first, send it again; `condition-count-exhausted`: PUT it once without a condition.";
const KEY_REUSED: (u16, &str) = (422, "The Idempotency-Key belongs to another request. Definite: nothing was written.");
const DISK_FULL: (u16, &str) = (507, "Not enough replicas have room.");
const NO_ROOM: (u16, &str) = (507, "The node's disk has no room for a copy of its database.");
const TOO_LARGE: (u16, &str) = (413, "The value is longer than the node's VALUE_BYTES_MAX; the detail names it.");
const BATCH_TOO_LARGE: (u16, &str) = (413, "The batch is longer than 16 MiB. Nothing was begun.");
const BODY_TIMEOUT: (u16, &str) = (408, "The body did not arrive in time.");
const STALLED: (u16, &str) =
    (408, "Nothing of the body came for 30 s. `import` says what was done of it; it may be sent again.");
const ENCODED: (u16, &str) = (415, "The body has a Content-Encoding, which is neither kept nor undone.");

fn problems_of(operation: &str) -> Vec<(u16, &'static str)> {
    let own: &[(u16, &str)] = match operation {
        "getValue" | "headValue" => &[NO_VALUE, READ_UNMET, TIMED_OUT],
        "putValue" => {
            &[CROSS_SITE, BODY_TIMEOUT, CONFLICT, WRITE_UNMET, TOO_LARGE, ENCODED, KEY_REUSED, TIMED_OUT, DISK_FULL]
        }
        "touchValue" => {
            &[CROSS_SITE, NO_VALUE, BODY_TIMEOUT, CONFLICT, WRITE_UNMET, TOO_LARGE, KEY_REUSED, TIMED_OUT, DISK_FULL]
        }
        "deleteValue" => &[CROSS_SITE, CONFLICT, WRITE_UNMET, KEY_REUSED, TIMED_OUT, DISK_FULL],
        "batch" => &[CROSS_SITE, BODY_TIMEOUT, BATCH_TOO_LARGE],
        "importRecords" => &[CROSS_SITE, STALLED, ENCODED, TIMED_OUT, DISK_FULL],
        "createBackup" => &[CROSS_SITE, NO_ROOM],
        "repair" => &[CROSS_SITE, BODY_TIMEOUT, TOO_LARGE],
        "planChange" => &[CROSS_SITE, NO_MEMBER, BODY_TIMEOUT, UNFIT, TOO_LARGE],
        "leaveCluster" => &[CROSS_SITE, NO_MEMBER, UNFIT, UNDECIDED],
        "changeMember" => &[CROSS_SITE, NO_MEMBER, BODY_TIMEOUT, UNFIT, TOO_LARGE, UNDECIDED],
        "changeReplicationFactor" => &[CROSS_SITE, BODY_TIMEOUT, UNFIT, TOO_LARGE, UNDECIDED],
        "getChange" => &[NO_CHANGE],
        "abortChange" => &[CROSS_SITE, NO_CHANGE, UNDECIDED],
        "getOperation" | "getOperationEvents" => &[NO_OPERATION],
        "abortOperation" => &[CROSS_SITE, NO_OPERATION],
        "listKeys" | "exportRecords" => &[TIMED_OUT],
        "watchKeys" => &[WATCH_GONE],
        "getProblemPage" => &[NOT_FOUND],
        _ => &[],
    };
    [COMMON, own].concat()
}

/// The API as OpenAPI 3.1, in JSON with a line end: what `/openapi.json` serves and `openapi/openapi.json` holds.
pub fn openapi_json() -> String {
    let mut api = all_routes().into_openapi();
    // The router's wildcard is a plain parameter to everyone else.
    if let Some(item) = api.paths.paths.remove("/kv/{*key}") {
        api.paths.paths.insert("/kv/{key}".to_owned(), item);
    }
    let components = api.components.get_or_insert_default();
    let problem_parts = [
        ("Problem", ProblemBody::schema()),
        ("FailedReplica", FailedReplica::schema()),
        ("BadParameter", BadParameter::schema()),
        ("Check", CheckBody::schema()),
        ("NodeName", bodies::NodeName::schema()),
    ];
    components.schemas.extend(problem_parts.map(|(name, schema)| (name.to_owned(), schema)));
    for item in api.paths.paths.values_mut() {
        let bodiless = item.head.as_mut().into_iter().map(|o| (o, false));
        let rest = [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete]
            .into_iter()
            .flatten()
            .map(|o| (o, true));
        for (operation, bodies) in bodiless.chain(rest) {
            describe_parts(operation, bodies);
        }
    }
    // The description is made of strings, maps and lists: serialisation to memory has no way to fail.
    let mut text = serde_json::to_string_pretty(&api).unwrap_or_default();
    text.push('\n');
    text
}

/// Operations that are nothing without a body.
const NEED_BODIES: &[&str] = &["batch", "planChange", "changeMember", "changeReplicationFactor"];

fn describe_parts(operation: &mut Operation, bodies: bool) {
    let id = operation.operation_id.clone().unwrap_or_default();
    if let Some(RefOr::T(body)) = &mut operation.request_body
        && !NEED_BODIES.contains(&id.as_str())
    {
        // No body is an empty value. The macro would say that by allowing null in its place.
        body.required = Some(Required::False);
    }
    // No operation needs a header. The macro would say that by allowing null, which a header cannot be.
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter
            && matches!(parameter.parameter_in, ParameterIn::Header)
        {
            parameter.required = Required::False;
        }
    }
    for (status, help) in problems_of(&id) {
        let mut response = problem_response(help, bodies);
        if status == 412 {
            describe_unmet(&mut response, matches!(id.as_str(), "putValue" | "touchValue" | "deleteValue"));
        }
        operation.responses.responses.insert(status.to_string(), RefOr::T(response));
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            response
                .headers
                .insert("X-Request-Id".to_owned(), RefOr::T(header("What the node's log calls the request.")));
        }
    }
}

fn problem_response(help: &str, bodies: bool) -> Response {
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let response = ResponseBuilder::new().description(help);
    if bodies { response.content("application/problem+json", problem) } else { response }.build()
}

/// What a condition met that is false.
fn describe_unmet(response: &mut Response, of_write: bool) {
    let mut describe = |name: &str, help: &str| {
        response.headers.insert(name.to_owned(), RefOr::T(header(help)));
    };
    describe("ETag", "The version that the condition met, in quotes; none where it met no value.");
    describe("A3-Version", "The version that the condition met.");
    if of_write {
        describe("Preference-Applied", "`return=representation` where the body is the value.");
        let value = ContentBuilder::new().schema(Some(Ref::from_schema_name("Value"))).build();
        response.content.insert("*/*".to_owned(), RefOr::T(value));
    }
}

fn header(help: &str) -> Header {
    let mut header = Header::new(Object::with_type(Type::String));
    header.description = Some(help.to_owned());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn api() -> Value {
        serde_json::from_str(&openapi_json()).unwrap()
    }

    #[test]
    fn the_checked_in_description_is_current() {
        let current = openapi_json() == include_str!("../../openapi/openapi.json");
        assert!(current, "run `a3 openapi > openapi/openapi.json`");
    }

    #[test]
    fn every_operation_is_described_whole() {
        let api = api();
        assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
        for (path, item) in api["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let at = format!("{method} {path}");
                for member in ["operationId", "description", "summary"] {
                    assert!(operation[member].as_str().is_some_and(|t| !t.is_empty()), "{at}: {member}");
                }
                assert_eq!(operation["tags"].as_array().unwrap().len(), 1, "{at}");
                let success = |status: &&str| operation["responses"][status].is_object();
                assert!(["200", "202"].iter().any(success), "{at}: no success");
                for status in ["400", "500", "503"] {
                    assert!(operation["responses"][status]["description"].is_string(), "{at}: {status}");
                }
            }
        }
    }

    #[test]
    fn a_value_is_binary_and_the_key_is_a_path_parameter() {
        let api = api();
        let put = &api["paths"]["/kv/{key}"]["put"];
        assert_eq!(
            put["requestBody"]["content"]["application/octet-stream"]["schema"]["$ref"],
            "#/components/schemas/Value"
        );
        assert_eq!(api["components"]["schemas"]["Value"]["format"], "binary");
        assert_eq!(put["parameters"][0]["in"], "path");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value, api: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(to)) = map.get("$ref") {
                        assert!(api.pointer(to.trim_start_matches('#')).is_some(), "{to}");
                    }
                    map.values().for_each(|v| walk(v, api));
                }
                Value::Array(list) => list.iter().for_each(|v| walk(v, api)),
                _ => {}
            }
        }
        let api = api();
        walk(&api, &api);
    }
}
