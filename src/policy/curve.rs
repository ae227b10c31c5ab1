//! How many recipients a day each stage of the ramp allows, before shares and caps.
//!
//! A curve is a list of values for the first stages and a growth factor for all later ones, so it has no end. It
//! never falls: a list that would is refused. Days are turned into stages elsewhere (`stage`).

/// No curve goes beyond this many recipients a day; every whole number up to it is exact in an `f64`.
const CEILING: f64 = 1e15;
/// Why a list of numbers is no curve.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CurveError {
    #[error("a curve needs at least one stage and at most {}", Curve::STAGES_MAX)]
    Length,
    #[error("stage {stage} is {value}; every stage must be at least 1 recipient a day")]
    NotPositive { stage: usize, value: f64 },
    #[error("stage {stage} falls from {before} to {value}; a curve may stand still but not fall")]
    Falling { stage: usize, before: f64, value: f64 },
    #[error("growth is {growth}; it must be a number from 1 to 100")]
    Growth { growth: f64 },
    #[error("day {day} follows day {before}; days must rise")]
    DayOrder { before: u32, day: u32 },
}

/// Recipients per day by stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    stages: Vec<f64>,
    growth: f64,
}

impl Curve {
    /// Longest list of stages.
    pub const STAGES_MAX: usize = 10_000;

    /// `stages` are recipients a day for stage 0, 1, …; after the last, each stage is `growth` x the one before.
    pub fn new(stages: Vec<f64>, growth: f64) -> Result<Self, CurveError> {
        if stages.is_empty() || stages.len() > Curve::STAGES_MAX {
            return Err(CurveError::Length);
        }
        if !(1.0..=100.0).contains(&growth) {
            return Err(CurveError::Growth { growth });
        }
        for (stage, value) in stages.iter().copied().enumerate() {
            if !(value >= 1.0 && value.is_finite()) {
                return Err(CurveError::NotPositive { stage, value });
            }
            if stage > 0 && value < stages[stage - 1] {
                return Err(CurveError::Falling { stage, before: stages[stage - 1], value });
            }
        }
        Ok(Curve { stages, growth })
    }

    /// `first_day` x `growth` ^ stage.
    pub fn formula(first_day: f64, growth: f64) -> Result<Self, CurveError> {
        Curve::new(vec![first_day], growth)
    }

    /// From a published table of (day, recipients), whose days may have gaps: the value holds in between. The first
    /// day of the table, whatever its number, is stage 0. For a table per hour pass the values x 24.
    pub fn from_days(days: &[(u32, f64)], growth: f64) -> Result<Self, CurveError> {
        let mut stages: Vec<f64> = Vec::new();
        let mut last: Option<(u32, f64)> = None;
        for &(day, value) in days {
            if let Some((before, held)) = last {
                if day <= before {
                    return Err(CurveError::DayOrder { before, day });
                }
                let gap = (day - before - 1) as usize;
                if stages.len() + gap >= Curve::STAGES_MAX {
                    return Err(CurveError::Length);
                }
                stages.extend(std::iter::repeat_n(held, gap));
            }
            stages.push(value);
            last = Some((day, value));
        }
        Curve::new(stages, growth)
    }

    /// 50 a day, x 1.25: 25 days to 10,000.
    pub fn gentle() -> Self {
        Curve { stages: vec![50.0], growth: 1.25 }
    }

    /// 50 a day, x 1.5: day 15 is past 12,000. The default.
    pub fn standard() -> Self {
        Curve { stages: vec![50.0], growth: 1.5 }
    }

    /// 200 a day, x 2: day 7 is past 12,000.
    pub fn fast() -> Self {
        Curve { stages: vec![200.0], growth: 2.0 }
    }

    /// Recipients a day at `stage` (0 is the first day), not rounded. Never less than at the stage before; stands
    /// still at 10^15, however high the stage.
    pub fn at(&self, stage: u32) -> f64 {
        let listed = self.stages.get(stage as usize).copied();
        listed.unwrap_or_else(|| self.beyond_the_list(stage)).min(CEILING)
    }

    /// The most it will ever allow; `None`: it grows on.
    pub fn highest(&self) -> Option<f64> {
        let last = self.stages[self.stages.len() - 1]; // `new` refuses an empty list
        (self.growth == 1.0).then_some(last)
    }

    /// c(0): what the very first day allows.
    pub fn first(&self) -> f64 {
        self.at(0)
    }

    fn beyond_the_list(&self, stage: u32) -> f64 {
        let last = self.stages[self.stages.len() - 1]; // `new` refuses an empty list
        let steps = stage as usize - (self.stages.len() - 1);
        // Beyond i32 the power is infinite or, at growth 1, still 1: the same answer either way.
        last * self.growth.powi(i32::try_from(steps).unwrap_or(i32::MAX))
    }
}

impl Default for Curve {
    fn default() -> Self {
        Curve::standard()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_gives_its_list_and_then_grows_on() {
        let cases: [(Curve, u32, f64); 9] = [
            (Curve::standard(), 0, 50.0),
            (Curve::standard(), 1, 75.0),
            (Curve::standard(), 2, 112.5),
            (Curve::gentle(), 1, 62.5),
            (Curve::fast(), 6, 12_800.0),
            (Curve::new(vec![50.0, 100.0, 500.0], 2.0).unwrap(), 2, 500.0),
            (Curve::new(vec![50.0, 100.0, 500.0], 2.0).unwrap(), 3, 1000.0),
            (Curve::new(vec![50.0], 1.0).unwrap(), u32::MAX, 50.0),
            (Curve::formula(10.0, 3.0).unwrap(), 2, 90.0),
        ];
        for (curve, stage, expect) in cases {
            assert_eq!(curve.at(stage), expect, "{curve:?} at {stage}");
        }
    }

    #[test]
    fn a_huge_stage_stands_still_at_the_ceiling() {
        for stage in [100, 10_000, i32::MAX as u32, u32::MAX] {
            assert_eq!(Curve::standard().at(stage), CEILING, "{stage}");
        }
    }

    #[test]
    fn a_curve_never_falls_from_one_stage_to_the_next() {
        for curve in [Curve::gentle(), Curve::standard(), Curve::fast(), Curve::new(vec![5.0, 5.0, 9.0], 1.1).unwrap()]
        {
            for stage in 0..500 {
                assert!(curve.at(stage + 1) >= curve.at(stage), "{curve:?} at {stage}");
            }
        }
    }

    #[test]
    fn lists_that_are_no_curve_are_refused() {
        assert_eq!(Curve::new(vec![], 2.0), Err(CurveError::Length));
        assert_eq!(Curve::new(vec![1.0; Curve::STAGES_MAX + 1], 2.0), Err(CurveError::Length));
        for value in [0.0, -5.0, 0.5, f64::INFINITY] {
            assert_eq!(Curve::new(vec![value], 2.0), Err(CurveError::NotPositive { stage: 0, value }));
        }
        assert!(matches!(Curve::new(vec![f64::NAN], 2.0), Err(CurveError::NotPositive { .. })));
        let falling = Curve::new(vec![50.0, 100.0, 99.0], 2.0);
        assert_eq!(falling, Err(CurveError::Falling { stage: 2, before: 100.0, value: 99.0 }));
        for growth in [0.99, 0.0, -1.0, 101.0, f64::INFINITY] {
            assert_eq!(Curve::formula(50.0, growth), Err(CurveError::Growth { growth }));
        }
        assert!(matches!(Curve::formula(50.0, f64::NAN), Err(CurveError::Growth { .. })));
    }

    #[test]
    fn gaps_in_the_days_of_a_table_hold_the_value_before() {
        let curve = Curve::from_days(&[(1, 10.0), (4, 20.0)], 2.0).unwrap();
        let values: Vec<f64> = (0..6).map(|stage| curve.at(stage)).collect();
        assert_eq!(values, [10.0, 10.0, 10.0, 20.0, 40.0, 80.0]);
        assert_eq!(Curve::from_days(&[(2, 1.0), (2, 2.0)], 2.0), Err(CurveError::DayOrder { before: 2, day: 2 }));
        assert_eq!(Curve::from_days(&[(0, 1.0), (u32::MAX, 2.0)], 2.0), Err(CurveError::Length));
    }
}
