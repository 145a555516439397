package zonetest

import (
	"fmt"
	"net"
	"strings"

	"github.com/miekg/dns"
)

// respond makes the answer to q. REQUIRES: mode is not Timeout or Unreachable.
func (z *Zone) respond(q *dns.Msg, network string, mode Mode) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	opt := q.IsEdns0()
	if opt != nil {
		m.SetEdns0(1232, false)
	}
	switch mode {
	case ServFail:
		m.Rcode = dns.RcodeServerFailure
		return m
	case Refused:
		m.Rcode = dns.RcodeRefused
		return m
	case NXDomain:
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{soa()}
		return m
	case NoEDNS:
		if opt != nil {
			m.Extra = nil
			m.Rcode = dns.RcodeFormatError
			return m
		}
	}
	name, typ := fqdn(q.Question[0].Name), q.Question[0].Qtype
	if mode == Huge {
		m.Answer = huge(q.Question[0].Name, typ)
	} else {
		z.answer(m, name, typ)
	}
	switch mode {
	case WrongQuestion:
		m.Question[0].Name = "wrong." + name
	case WrongID:
		m.Id++
	case NotResponse:
		m.Response = false
	case WrongOwner:
		for i, rr := range m.Answer {
			m.Answer[i] = dns.Copy(rr)
			m.Answer[i].Header().Name = "wrong." + name
		}
	case Truncate, TruncateTCP:
		if network == "udp" || mode == TruncateTCP {
			m.Answer, m.Ns, m.Truncated = nil, nil, true
		}
	}
	if network == "udp" {
		size := dns.MinMsgSize
		if opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		m.Truncate(size)
	}
	return m
}

// answer fills m with what the zone holds, following CNAMEs.
func (z *Zone) answer(m *dns.Msg, name string, typ uint16) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for range 20 { // a loop in the zone is given to the client unrolled
		rrs, ok := z.lookup(name)
		if !ok {
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{soa()}
			return
		}
		var cname *dns.CNAME
		n := len(m.Answer)
		for _, rr := range rrs {
			rr = dns.Copy(rr)
			rr.Header().Name = name // a wildcard takes the name asked for
			if rr.Header().Rrtype == typ {
				m.Answer = append(m.Answer, rr)
			} else if c, ok := rr.(*dns.CNAME); ok {
				cname = c
			}
		}
		if len(m.Answer) > n {
			return
		}
		if cname == nil {
			m.Ns = []dns.RR{soa()}
			return
		}
		m.Answer = append(m.Answer, cname)
		name = fqdn(cname.Target)
	}
}

// lookup returns the records of name and whether it exists, if only because a
// name below it does. REQUIRES: z.mu is held.
func (z *Zone) lookup(name string) ([]dns.RR, bool) {
	if rrs, ok := z.records[name]; ok {
		return rrs, true
	}
	for other := range z.records {
		if strings.HasSuffix(other, "."+name) {
			return nil, true
		}
	}
	for parent := name; ; {
		_, rest, ok := strings.Cut(parent, ".")
		if !ok || rest == "" {
			return nil, false
		}
		if rrs, ok := z.records["*."+rest]; ok {
			return rrs, true
		}
		if _, ok := z.records[rest]; ok {
			return nil, false // the closest name that exists has no wildcard
		}
		parent = rest
	}
}

func soa() dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: NegativeTTL},
		Ns:  "ns.invalid.", Mbox: "hostmaster.invalid.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: NegativeTTL,
	}
}

// huge returns as many records as one message of 64 KB can hold.
func huge(name string, typ uint16) []dns.RR {
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	size := m.Len() + 11 // and an OPT record
	var rrs []dns.RR
	for i := 0; ; i++ {
		h := dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: DefaultTTL}
		var rr dns.RR
		switch typ {
		case dns.TypeA:
			rr = &dns.A{Hdr: h, A: net.IPv4(192, 0, 2, byte(i))}
		case dns.TypeAAAA:
			rr = &dns.AAAA{Hdr: h, AAAA: net.ParseIP(fmt.Sprintf("2001:db8::%x", i&0xffff))}
		case dns.TypeMX:
			rr = &dns.MX{Hdr: h, Preference: uint16(i % 7), Mx: fmt.Sprintf("mx%d.huge.example.", i)}
		default:
			rr = &dns.TXT{Hdr: h, Txt: []string{fmt.Sprintf("%0200d", i)}}
		}
		if size += dns.Len(rr); size > dns.MaxMsgSize {
			return rrs
		}
		rrs = append(rrs, rr)
	}
}
