package throttle

import (
	"slices"
	"time"
)

var brakeKeys = []string{"scope", "bounces", "unknown", "complaints", "sample", "within", "action", "for", "rate"}

// brake reads a [brake.NAME] table.
func (ld *loader) brake(path []string, name string, t map[string]any) {
	before := len(ld.problems)
	b := &brake{name: name, sample: 100, within: time.Hour, length: time.Hour, origin: Origin{
		File: ld.file, Line: ld.lineOf(path), Section: "brake", Key: name,
	}}
	part := func(key string, into *float64) {
		if v, ok := t[key]; ok {
			f, err := share(v)
			if err != nil || f == 0 {
				ld.problem(at(path, key), "must be a share above 0 and up to 1")
			}
			*into = f
		}
	}
	part("bounces", &b.bounces)
	part("unknown", &b.unknown)
	part("complaints", &b.complaints)
	span := func(key string, into *time.Duration) {
		if v, ok := t[key]; ok {
			s, _ := v.(string)
			d, err := parseDuration(s)
			if err != nil || d <= 0 {
				ld.problem(at(path, key), "must be a duration such as \"1h\"")
			}
			*into = d
		}
	}
	span("within", &b.within)
	span("for", &b.length)
	for key, v := range t {
		sub := at(path, key)
		switch key {
		case "scope":
			b.campaign = v == "campaign"
			if v != "tenant" && v != "campaign" {
				ld.problem(sub, "must be tenant or campaign")
			}
		case "sample":
			n, ok := v.(int64)
			if !ok || n < 1 {
				ld.problem(sub, "must be a positive number")
			}
			b.sample = n
		case "action":
			s, _ := v.(string)
			i := slices.Index(brakeActions, s)
			if i < 0 {
				ld.problem(sub, "must be slow, pause or hold")
			}
			b.action = brakeAction(max(i, 0))
		case "rate":
			r, err := rates(v)
			if err != nil {
				ld.problem(sub, "%v", err)
			}
			b.rate = &Value{key: KeyTenantRate, Rates: r, Origin: b.origin}
		default:
			if !slices.Contains(brakeKeys, key) {
				ld.unknown(sub, brakeKeys)
			}
		}
	}
	switch {
	case t["scope"] == nil || t["action"] == nil:
		ld.problem(path, "needs a scope and an action")
	case b.bounces+b.unknown+b.complaints == 0:
		ld.problem(path, "needs at least one of bounces, unknown, complaints")
	case b.action == brakeSlow && b.rate == nil:
		ld.problem(path, "slow needs a rate")
	}
	if len(ld.problems) > before {
		return
	}
	ld.rules.brakes = slices.DeleteFunc(ld.rules.brakes, func(old *brake) bool { return old.name == name })
	ld.rules.brakes = append(ld.rules.brakes, b)
}
