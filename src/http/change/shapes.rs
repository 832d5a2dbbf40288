//! The shapes of bodies that ask for a change of the topology: they only describe what [`super::wanted`] reads, because every
//! fault in a body is listed, which serde cannot.

#![expect(dead_code, reason = "it only describes bodies")]

use serde::Deserialize;
use utoipa::ToSchema;

// Exactly what `wanted::node` takes.
/// A node by its number.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(value_type = String, example = "n4",
    pattern = "^n([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$")]
pub(in crate::http) struct NodeText(String);

/// A zone's name, of 64 bytes at most.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(value_type = String, example = "b", min_length = 1, max_length = 64, format = "zone")]
pub(super) struct ZoneText(String);

/// A member's share of the slots, relative to the others'.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(value_type = u32, minimum = 0, maximum = 1000)]
pub(super) struct WeightNumber(u32);

/// Copies of each key.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(value_type = u8, example = 3, minimum = 1, maximum = 16)]
pub(super) struct CopiesNumber(u8);

/// A change to look at.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = WantedChange)]
#[serde(untagged)]
pub(super) enum PlanBody {
    Leave(WantedLeave),
    Join(WantedJoin),
    Weight(WantedWeight),
    Zone(WantedZone),
    ReplicationFactor(WantedReplicationFactor),
}

/// A member hands over what it keeps, and is none any more.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedLeave {
    #[schema(inline)]
    change: Leave,
    #[schema(inline, example = "n2")]
    node: NodeText,
}

/// A node that is no member becomes one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedJoin {
    #[schema(inline)]
    change: Join,
    #[schema(inline)]
    node: NodeText,
    /// Its share of the slots, relative to the others'; 1 unless said.
    #[schema(required = false, minimum = 0, maximum = 1000, default = 1)]
    weight: u32,
    /// Where it stands; nowhere unless said.
    #[schema(inline, required = false)]
    zone: Option<ZoneText>,
}

/// A member's share becomes another one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedWeight {
    #[schema(inline)]
    change: Weight,
    #[schema(inline, example = "n1")]
    node: NodeText,
    #[schema(inline)]
    weight: WeightNumber,
}

/// A member stands in another zone, or in none (`null`).
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedZone {
    #[schema(inline)]
    change: Zone,
    #[schema(inline, example = "n1")]
    node: NodeText,
    #[schema(inline, required = true)]
    zone: Option<ZoneText>,
}

/// Another number of copies of each key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedReplicationFactor {
    #[schema(inline)]
    change: ReplicationFactor,
    #[schema(inline)]
    rf: CopiesNumber,
}

macro_rules! words {
    ($($name:ident)*) => {
        $(
            #[derive(Debug, Deserialize, ToSchema)]
            #[serde(rename_all = "kebab-case")]
            pub(super) enum $name { $name }
        )*
    };
}

words! { Leave Join Weight Zone ReplicationFactor }

/// What a member is to have.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = WantedOfMember)]
#[serde(untagged)]
pub(super) enum MemberBody {
    Weight(OtherWeight),
    Zone(OtherZone),
}

/// Another share of the slots.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OtherWeight {
    #[schema(inline)]
    weight: WeightNumber,
}

/// Another zone, or none (`null`).
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OtherZone {
    #[schema(inline, required = true)]
    zone: Option<ZoneText>,
}

/// How many copies of each key are wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = WantedCopies)]
#[serde(deny_unknown_fields)]
pub(super) struct CopiesBody {
    #[schema(inline)]
    rf: CopiesNumber,
}
