package mta

import (
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/throttle"
)

// TestNoticeAfterRetirementIsPassedOver: a connection that is closed late wakes
// the lanes that waited for it, and the site of one has been dropped meanwhile.
func TestNoticeAfterRetirementIsPassedOver(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m, err := New(Settings{
		Config: DefaultConfig(), Hostname: "mta.example",
		Sources: []Source{{Name: "ip1"}, {Name: "ip2"}},
		Pools:   []Pool{{Name: DefaultPool, Sources: []PoolMember{{Source: "ip1", Weight: 1}, {Source: "ip2", Weight: 1}}}},
	}, Deps{Throttle: throttle.New(&throttle.Rules{}, throttle.Options{}), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	s := m.site(siteKey{pool: DefaultPool, site: "mx.example"}, "a.example", []string{"mx.example"}, nil)
	l := s.lanes[0]
	m.sweep()
	now = now.Add(siteIdle)
	m.sweep()
	if s.lanes != nil || len(m.sites) != 0 {
		t.Fatal("the site has not retired")
	}
	s.notified(l, throttle.FreedAll)
	s.parked(l)
	s.wake()
}
