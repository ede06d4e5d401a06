//! Schemas of types whose JSON is not what their fields say.

use std::borrow::Cow;

use utoipa::openapi::schema::{Array, Object, OneOf, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::{BaselineSpec, Cause, CustomBaseline, Feature, FeatureSet, Kind, Mismatch, Register};

impl PartialSchema for Feature {
    fn schema() -> RefOr<Schema> {
        Object::builder()
            .schema_type(Type::String)
            .description(Some("A CPU feature's name, e.g. `avx512_vnni`"))
            .into()
    }
}

impl ToSchema for Feature {
    fn name() -> Cow<'static, str> {
        "CpuFeature".into()
    }
}

impl PartialSchema for FeatureSet {
    fn schema() -> RefOr<Schema> {
        Array::new(Object::with_type(Type::String)).into()
    }
}

impl ToSchema for FeatureSet {
    fn name() -> Cow<'static, str> {
        "CpuFeatures".into()
    }
}

impl PartialSchema for Mismatch {
    fn schema() -> RefOr<Schema> {
        let text = || Object::with_type(Type::String);
        let number = |about: &str| {
            Object::builder().schema_type(Type::Integer).minimum(Some(0)).description(Some(about.to_owned()))
        };
        let value = || OneOf::builder().item(Object::with_type(Type::Integer)).item(text());
        let field = "The feature's name, or the field's: `vendor`, `tsc_khz`, `xsave_area[5]`, …";
        let masking = "For a feature: whether hiding it from a guest also stops the guest from using it";
        Object::builder()
            .description(Some("One reason why a guest can't run on a host"))
            .property("field", Object::builder().schema_type(Type::String).description(Some(field)))
            .property("leaf", number("For a feature in CPUID: its leaf"))
            .property("subleaf", number("For a feature in CPUID: its subleaf"))
            .property("register", Ref::from_schema_name(Register::name()))
            .property("msr", number("For a feature in an MSR: the MSR"))
            .property("bit", number("For a feature: its bit"))
            .property("guest", value().description(Some("What the guest has: 1 or 0 for a feature")))
            .property("host", value().description(Some("What the host can give")))
            .property("kind", Ref::from_schema_name(Kind::name()))
            .property("cause", Ref::from_schema_name(Cause::name()))
            .property(
                "disabled_by_masking",
                Object::builder().schema_type(Type::Boolean).description(Some(masking)),
            )
            .required("field")
            .required("guest")
            .required("host")
            .required("kind")
            .required("cause")
            .into()
    }
}

impl ToSchema for Mismatch {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Register::name().into_owned(), Register::schema()));
        schemas.push((Kind::name().into_owned(), Kind::schema()));
        schemas.push((Cause::name().into_owned(), Cause::schema()));
    }
}

impl PartialSchema for BaselineSpec {
    fn schema() -> RefOr<Schema> {
        let custom = Ref::from_schema_name(CustomBaseline::name());
        OneOf::builder()
            .item(Object::with_type(Type::String))
            .item(custom)
            .description(Some("A baseline's name with parts, `host`, or an object that changes one"))
            .into()
    }
}

impl ToSchema for BaselineSpec {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((CustomBaseline::name().into_owned(), CustomBaseline::schema()));
        CustomBaseline::schemas(schemas);
    }
}
