package mx

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

func TestTextRecordsAreFoundMissingOrUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("s1._domainkey.example.", `TXT "v=DKIM1; " "p=abc"`, `TXT "other"`)
		zone.Set("alias.example.", "CNAME s1._domainkey.example.")
		zone.Set("host.example.", "A 192.0.2.1")
		zone.Fail("broken.example.", zonetest.ServFail)
		r := newResolver(t, zone, func(*Config, *Deps) {})
		for _, tt := range []struct {
			name string
			want []string
			fail bool
		}{
			{"s1._domainkey.Example.", []string{"other", "v=DKIM1; p=abc"}, false},
			{"alias.example", []string{"other", "v=DKIM1; p=abc"}, false},
			{"host.example", nil, false},
			{"none.example", nil, false},
			{"broken.example", nil, true},
			{"", nil, true},
			{"a..b", nil, true},
		} {
			got, err := r.TXT(t.Context(), tt.name)
			slices.Sort(got)
			if !slices.Equal(got, tt.want) || (err != nil) != tt.fail {
				t.Errorf("%q: got %q, %v; want %q, failure %t", tt.name, got, err, tt.want, tt.fail)
			}
		}
	})
}
