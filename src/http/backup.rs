//! This node's database as one file.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{Code, Problem};
use super::query::Query;
use super::{Api, date};
use crate::ports::{Backup, BackupError};
use crate::types::BackupAbout;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(backup))
}

/// RFC 9530.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// A database file.
#[derive(Debug, ToSchema)]
#[schema(as = BackupFile, value_type = String, format = Binary)]
#[expect(dead_code, reason = "it only describes a body")]
pub(super) struct BackupBytes(Vec<u8>);

/// Back up this node
///
/// A copy of the asked node's database, as of one moment after the request came, in one SQLite file: `a3 restore` makes a data
/// directory of it. It is copied, and every page and row of the copy verified, before the first byte is sent, so that takes its
/// time. `Content-Length` and `Repr-Digest` (`sha-256`) say whether all of it arrived. A backup has what this node holds, which is
/// its share of the keys: for all of them every node is backed up.
#[utoipa::path(post, path = "/backup", operation_id = "createBackup", tag = "cluster",
    responses((status = 200, description = "The file.", body = BackupBytes, content_type = "application/vnd.sqlite3",
        headers(
            ("Content-Disposition" = String, description = "A name for the file, of node, cluster and time."),
            ("Repr-Digest" = String, description = "`sha-256=:...:`, of the whole file."),
            ("Content-Length" = u64, description = "Its bytes."),
        ))))]
async fn backup(State(api): State<Arc<Api>>, uri: Uri) -> Result<Response, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let Backup { about, bytes, sha256, chunks } = api.node.backup().await.map_err(problem_of)?;
    let chunks = stream::unfold(chunks, |mut chunks| async { chunks.recv().await.map(|chunk| (chunk, chunks)) });
    let headers = [
        (CONTENT_TYPE, "application/vnd.sqlite3".to_owned()),
        (CONTENT_LENGTH, bytes.to_string()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", name_of(&about))),
        (REPR_DIGEST, format!("sha-256=:{}:", BASE64_STANDARD.encode(sha256))),
        (CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}

/// `a3-n2-<cluster>-20261129T141334000Z.db`.
fn name_of(about: &BackupAbout) -> String {
    let time: String = date::exact(about.taken_ms).chars().filter(char::is_ascii_alphanumeric).collect();
    format!("a3-{}-{}-{time}.db", about.node, about.cluster)
}

fn problem_of(error: BackupError) -> Problem {
    let code = match &error {
        BackupError::Busy => Code::BackupRunning,
        BackupError::NotReady(_) => Code::NotReady,
        BackupError::DiskFull(_) => Code::DiskFull,
        BackupError::Damaged(_) => Code::StoreDamaged,
        BackupError::Failed(_) => Code::Internal,
    };
    Problem::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BackupRows, ClusterId, Epoch, InstanceId, NodeNum};

    #[test]
    fn the_name_says_whose_and_of_when() {
        let about = BackupAbout {
            node: NodeNum(2),
            instance: InstanceId(uuid::Uuid::nil()),
            cluster: ClusterId(uuid::Uuid::nil()),
            epoch: Epoch(1),
            taken_ms: 1_700_000_000_123,
            program: "0.1.0".into(),
            schema: 6,
            rows: BackupRows::default(),
        };
        assert_eq!(name_of(&about), "a3-n2-00000000-0000-0000-0000-000000000000-20231114T221320123Z.db");
    }
}
