//! Chance, for what must differ between breakers.
//!
//! Not here: anything that has to be unpredictable.

use std::hash::{BuildHasher, RandomState};

/// Any number, each as likely as the others. The standard library seeds its hashers with a key that differs for each
/// thread and each hasher, which spares a generator of our own.
pub(crate) fn random() -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "half of the hash is enough")]
    let number = RandomState::new().hash_one(()) as u32;
    number
}

#[cfg(test)]
mod tests {
    use super::random;

    #[test]
    fn every_eighth_of_the_numbers_is_drawn_about_as_often() {
        let mut drawn = [0_u32; 8];
        for _ in 0..8000 {
            drawn[(random() >> 29) as usize] += 1;
        }
        // 1000 on average, with a standard deviation of 30.
        assert!(drawn.iter().all(|drawn| (800..1200).contains(drawn)), "{drawn:?}");
    }
}
