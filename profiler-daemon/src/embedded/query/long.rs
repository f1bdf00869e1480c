//! The scalar `Long` of SkyWalking's query protocol: 64 bits, for times in epoch milliseconds.

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value};

#[derive(Clone, Copy, Debug)]
pub(super) struct Long(pub(super) i64);

#[Scalar]
impl ScalarType for Long {
    /// A number, or one in a text, as OAP takes it.
    fn parse(value: Value) -> InputValueResult<Self> {
        let number = match &value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number
            .map(Self)
            .ok_or_else(|| InputValueError::expected_type(value))
    }

    fn to_value(&self) -> Value {
        Value::from(self.0)
    }
}
