package api

import (
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/inject"
)

// TestUnknownFieldIsNamedWithItsPlaceAndWhatCouldStandThere misspells members at
// every depth.
func TestUnknownFieldIsNamedWithItsPlaceAndWhatCouldStandThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	for body, want := range map[string][2]string{
		`{"from":"a@example.com","subjct":"x"}`:                                                     {"subjct", "subject"},
		`{"from":{"email":"a@example.com","nmae":"A"}}`:                                             {"from.nmae", "email, name"},
		`{"from":"a@example.com","to":[{"email":"b@example.net"},{"emil":"c@example.net"}]}`:        {"to[1].emil", "email, name"},
		`{"from":"a@example.com","to":{"emil":"c@example.net"}}`:                                    {"to.emil", "email, name"},
		`{"from":"a@example.com","recipients":[{"email":"b@example.net"},{"emial":"c@e.example"}]}`: {"recipients[1].emial", "substitutions"},
		`{"from":"a@example.com","attachments":[{"filename":"x","content":"eA==","typ":"x"}]}`:      {"attachments[0].typ", "content_type"},
	} {
		var p Problem
		w.post(body).into(422, &p)
		if len(p.Errors) != 1 || p.Errors[0].Field != want[0] || p.Errors[0].Code != "unknown_field" || !strings.Contains(p.Errors[0].Message, want[1]) {
			t.Errorf("%s: got %+v, want %s and %q", body, p.Errors, want[0], want[1])
		}
	}
	// What tenants put into metadata and substitutions is theirs.
	w.post(`{"from":"a@example.com","text":"x","subject":"x","metadata":{"any":{"thing":1}},"recipients":[{"email":"b@example.net","substitutions":{"any":"x"}}]}`).into(202, &accepted{})
}
