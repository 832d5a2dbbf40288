/**
 * What the node tells, as far as the console reads it; openapi/openapi.json is the whole of it. For readers and editors:
 * this file is not served.
 */

export interface HintsKept { node: string; count: number; bytes: number }

export interface HintTarget extends HintsKept { oldest_ms: number | null; dropped: number }

export interface Member {
  id: string;
  liveness: "alive" | "suspect" | "down";
  reachable: boolean;
  slots: number;
  http_address: string;
  zone: string | null;
  hints_owed: number;
  /** What only the member can know is null until it has told. */
  state: "starting" | "serving" | "draining" | "failed" | null;
  program: string | null;
  epoch: number | null;
  keys: number | null;
  bytes: number | null;
  requests_per_second: number | null;
  latency_p99_ms: number | null;
  hints_kept: HintsKept[] | null;
}

export interface Cluster { epoch: number; rf: number; members: Member[] }

export interface Health {
  status: "healthy" | "degraded" | "unavailable";
  slots_full: number;
  slots_unavailable: number;
  slots_total: number;
  members_down: string[];
  hints_pending: number;
}

export interface Operation {
  id: string;
  state: "running" | "done" | "failed" | "aborted";
  reason?: string;
  started_ms: number;
  ended_ms: number | null;
  dry_run: boolean;
  done: number;
  total: number | null;
  differing: number;
  sent: number;
  received: number;
  bytes: number;
  eta_ms: number | null;
}

/** What the stream tells each second. */
export interface Snapshot {
  node: string;
  at_ms: number;
  ready: boolean;
  checks: { name: string; ok: boolean; detail: string }[];
  cluster: Cluster | null;
  health: Health | null;
  hints: { targets: HintTarget[] };
  operations: Operation[];
}

/** An event of the stream. */
export interface Happening { number: number; at_ms: number; node: string; kind: string; text: string }

export interface Slot { slot: string; replicas: string[]; before?: string[] }

export interface Ring { slots: Slot[]; warnings: string[]; moving: { since: number; text: string; slots: number } | null }

export interface Tombstones {
  tombstones: number;
  waiting_for: { node: string; reason: string }[];
  members: { node: string; tombstones: number | null; oldest_ms: number | null; purged: number | null }[];
}

export interface Problem {
  title: string;
  detail: string;
  code: string;
  status: number;
  outcome?: "applied" | "not_applied" | "unknown";
  retryable?: boolean;
  parameters?: { name: string; reason: string }[];
  failed?: { node: string; reason: string }[];
  request_id?: string;
}

export interface Answer { ok: boolean; status: number; headers: Headers; body: any; problem?: Problem }

export type Connection = "connecting" | "live" | "lost";

/** Who follows the stream. */
export interface Listener {
  snapshot(told: Snapshot): void;
  event(told: Happening): void;
  connection(now: Connection): void;
}
