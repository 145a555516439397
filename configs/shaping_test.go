package configs

import "testing"

func TestShippedShapingRulesPassTheirOwnExamples(t *testing.T) {
	t.Parallel()
	cfg := Default()
	rules, problems := cfg.ShapingRules()
	for _, p := range problems {
		t.Errorf("load: %s", p)
	}
	for _, p := range rules.Check() {
		t.Errorf("check: %s", p)
	}
}
