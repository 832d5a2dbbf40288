//! The console: pages for people, served from the binary alone.
//!
//! Plain files of `console/` at the root of the repository: HTML, CSS, SVG and ES modules, as they were written. Nothing
//! of them is made at run time, so a page holds no text of a client; what it shows it asks for through the API.
//!
//! Invariants:
//! - The page may load from this node alone and run nothing but its own modules: its content security policy says so.
//! - A file changes only with the program, which its ETag follows; a browser asks each time whether it has the newest.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing;
use tower_http::compression::CompressionLayer;
use xxhash_rust::xxh3::xxh3_64;

use super::Api;
use super::problem::{Code, Problem};
use super::query::Query;

/// What the page may do: load its own files and ask its own node. Trusted types forbid its scripts to make markup of text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// One file.
#[derive(Debug)]
struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! assets {
    ($($name:literal: $kind:expr;)*) => {
        &[$(Asset { name: $name, kind: $kind, text: include_str!(concat!("../../console/", $name)) }),*]
    };
}

const HTML: &str = "text/html; charset=utf-8";
const MODULE: &str = "text/javascript; charset=utf-8";

/// The first is the page, served at `/`; the others are served under `/console/`.
const ASSETS: &[Asset] = assets! {
    "index.html": HTML;
    "style.css": "text/css; charset=utf-8";
    "icon.svg": "image/svg+xml";
    "app.js": MODULE;
    "api.js": MODULE;
    "live.js": MODULE;
    "dom.js": MODULE;
    "format.js": MODULE;
    "ring.js": MODULE;
    "cluster.js": MODULE;
    "keys.js": MODULE;
    "record.js": MODULE;
    "value.js": MODULE;
    "healing.js": MODULE;
    "convergence.js": MODULE;
    "events.js": MODULE;
};

/// An ETag for each file.
static ETAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| ASSETS.iter().map(etag).collect());

/// Weak, because the same file may be sent compressed.
fn etag(asset: &Asset) -> HeaderValue {
    let tag = format!("W/\"{:016x}\"", xxh3_64(asset.text.as_bytes()));
    // Hexadecimal digits and quotes are always a header value.
    HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static(""))
}

/// The page's files. They are no part of the API and not described.
pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/console/{name}", routing::get(file)).layer(CompressionLayer::new())
}

async fn file(Path(name): Path<String>, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let found = ASSETS.iter().skip(1).position(|asset| asset.name == name);
    let at = found.ok_or_else(|| Problem::new(Code::NoSuchPage, "the console has no such file"))? + 1;
    Ok(answer(at, &headers))
}

/// The page itself.
pub(super) fn page(headers: &HeaderMap) -> Response {
    answer(0, headers)
}

fn answer(at: usize, asked: &HeaderMap) -> Response {
    let (asset, etag) = (&ASSETS[at], &ETAGS[at]);
    let listed = asked.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    let known = listed.flat_map(|line| line.split(',')).any(|tag| is_same(tag.trim(), etag));
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { asset.text.into_response() };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    headers.insert(ETAG, etag.clone());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if asset.kind == HTML {
        headers.insert(VARY, HeaderValue::from_static("accept"));
    }
    response
}

/// Whether a tag that a client has is this one; weak or not, it is the same file.
fn is_same(tag: &str, etag: &HeaderValue) -> bool {
    let plain = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    tag == "*" || etag.to_str().is_ok_and(|etag| plain(etag) == plain(tag))
}

/// Whether a client would rather have a page than JSON: it names `text/html`, and no kind of JSON before it. A browser
/// does; a client that takes anything does not.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    let named = |kind: &str| {
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
        accepted.flat_map(|line| line.split(',')).find_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(kind));
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            is_named.then(|| quality.map_or(1.0, |text| text.parse::<f32>().unwrap_or(0.0)))
        })
    };
    named("text/html").is_some_and(|page| page > 0.0 && named("application/json").is_none_or(|json| page > json))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All files together, uncompressed, in bytes.
    const BYTES_MAX: usize = 80_000;

    fn accepting(line: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(line));
        wants_page(&headers)
    }

    #[test]
    fn a_browser_gets_the_page_and_a_program_json() {
        assert!(accepting("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"));
        assert!(accepting("TEXT/HTML") && accepting("application/json;q=0.5, text/html"));
        for program in
            ["*/*", "application/json", "text/html;q=0", "application/json, text/html", "text/*", "text/html;q=x"]
        {
            assert!(!accepting(program), "{program}");
        }
        assert!(!wants_page(&HeaderMap::new()));
    }

    #[test]
    fn the_console_is_small() {
        let bytes: usize = ASSETS.iter().map(|asset| asset.text.len()).sum();
        assert!(bytes <= BYTES_MAX, "{bytes} bytes");
    }

    /// What the policy would only refuse in a browser is not written in the first place.
    #[test]
    fn the_files_make_no_markup_of_text_and_load_nothing_from_elsewhere() {
        for asset in ASSETS {
            let elsewhere = asset.text.split("://").count() - 1;
            let namespaces = asset.text.matches("http://www.w3.org/2000/svg").count();
            assert_eq!(elsewhere, namespaces, "{}: an address of another host", asset.name);
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", "onclick="]
            {
                assert!(!asset.text.contains(forbidden), "{}: {forbidden}", asset.name);
            }
        }
    }

    #[test]
    fn every_import_and_file_of_the_page_is_served() {
        let served = |name: &str| ASSETS.iter().any(|asset| asset.name == name);
        for asset in ASSETS {
            let imports = asset.text.split("from \"./").skip(1).chain(asset.text.split("\"/console/").skip(1));
            for name in imports.filter_map(|rest| rest.split('"').next()) {
                assert!(served(name), "{} asks for {name}", asset.name);
            }
        }
    }

    #[test]
    fn every_file_says_what_it_is_for() {
        for asset in ASSETS.iter().filter(|asset| asset.kind == MODULE) {
            assert!(asset.text.starts_with("/**\n * "), "{} has no header", asset.name);
            assert!(asset.text.lines().count() <= 500, "{} is long", asset.name);
        }
    }
}
