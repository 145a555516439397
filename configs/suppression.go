package configs

import "time"

// validate checks [suppression].
func (s *Suppression) validate(bad func(key, format string, args ...any)) {
	if s.SoftBounces < 0 || s.SoftBounces > 50 {
		bad("suppression.soft_bounces", "%d is not between 0 and 50", s.SoftBounces)
	}
	if s.SoftWindow <= 0 {
		bad("suppression.soft_window", "%v is not positive", s.SoftWindow)
	}
	for key, d := range map[string]time.Duration{
		"expire_hard_bounce": s.ExpireHardBounce, "expire_soft_bounce": s.ExpireSoftBounce,
		"expire_manual": s.ExpireManual, "expire_import": s.ExpireImport,
	} {
		if d < 0 {
			bad("suppression."+key, "%v is negative", d)
		}
	}
}
