/**
 * The node's API, as the console asks it. Whatever is not a success comes back as a problem, and is never thrown.
 *
 * @typedef {import("./types").Answer} Answer @typedef {import("./types").Problem} Problem
 */

/** How long an answer is waited for, in milliseconds; comparisons of keys may take long. */
const PATIENCE_MS = 15_000;
const LONG_PATIENCE_MS = 300_000;

/**
 * @param {string} method @param {string} path @param {{ headers?: Record<string, string>, body?: BodyInit, patience?: number }} [more]
 * @returns {Promise<Answer>}
 */
async function ask(method, path, { headers = {}, body, patience = PATIENCE_MS } = {}) {
  try {
    const signal = AbortSignal.timeout(patience);
    const response = await fetch(path, { method, headers, body, signal, cache: "no-store", credentials: "omit" });
    const json = await response.json().catch(() => null);
    const answer = { ok: response.ok, status: response.status, headers: response.headers, body: json };
    return response.ok ? answer : { ...answer, problem: json?.title ? json : unexplained(response.status) };
  } catch (error) {
    return { ok: false, status: 0, headers: new Headers(), body: null, problem: unanswered(error, method) };
  }
}

/** @returns {Problem} */
function unexplained(status) {
  return { title: "The answer was no problem document", detail: `Something between here and the node answered ${status}.`, code: "unexplained", status };
}

/** @returns {Problem} */
function unanswered(error, method) {
  const late = error?.name === "TimeoutError";
  const outcome = method === "GET" ? undefined : "unknown";
  const title = late ? "The node did not answer in time" : "The node cannot be reached";
  return { title, detail: "Try again, or open the console of another node.", code: late ? "late" : "unreachable", status: 0, outcome };
}

/** The path of a key: each byte that could mean something else is escaped. @param {string} key */
export function path(key) {
  return `/kv/${encodeURIComponent(key).replace(/\./g, "%2E")}`;
}

const query = parameters => {
  const given = Object.entries(parameters).filter(([, value]) => value);
  return given.length ? `?${new URLSearchParams(given)}` : "";
};

/** A key's record and what each replica holds. */
export const record = (key, consistency) => ask("GET", path(key) + query({ consistency, view: "record" }));

/** @param {{ value: string, type: string, ttl: string, consistency: string, headers: Record<string, string> }} what */
export const put = (key, { value, type, ttl, consistency, headers }) =>
  ask("PUT", path(key) + query({ consistency, ttl }), { body: new TextEncoder().encode(value), headers: { "Content-Type": type, ...headers } });

/** @param {{ consistency: string, headers: Record<string, string> }} what */
export const remove = (key, { consistency, headers }) => ask("DELETE", path(key) + query({ consistency }), { headers });

/** @param {string} [cursor] */
export const list = (prefix, cursor) => ask("GET", "/kv" + query({ prefix, cursor }));

export const ring = () => ask("GET", "/cluster/ring");
export const placement = key => ask("GET", `/cluster/placement?key=${encodeURIComponent(key)}`);

/** How the copies agree; with `keys` those that differ are named. */
export const convergence = keys => ask("GET", `/cluster/convergence${keys ? "?keys" : ""}`, { patience: keys ? LONG_PATIENCE_MS : PATIENCE_MS });

export const repair = dryRun => ask("POST", "/repair", { body: JSON.stringify({ dry_run: dryRun }), headers: { "Content-Type": "application/json" } });
/** Paths that this node has. */
export const index = () => ask("GET", "/", { headers: { Accept: "application/json" } });
export const tombstones = () => ask("GET", "/tombstones");
export const abort = id => ask("DELETE", `/operations/${encodeURIComponent(id)}`);
