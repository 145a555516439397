package event

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// csvFields returns the columns a CSV sink knows, but for the families meta_,
// header_ and arf_.
func csvFields() map[string]field {
	text := func(f func(e *message.Event) string) field {
		return func(_ *CSV, _ string, e *message.Event) string { return f(e) }
	}
	reply := func(f func(r *message.Reply) string) field {
		return text(func(e *message.Event) string {
			if e.Reply == nil {
				return ""
			}
			return f(e.Reply)
		})
	}
	known := map[string]field{
		"timeLogged": func(s *CSV, _ string, e *message.Event) string { return s.time(e.Time) },
		"timeQueued": func(s *CSV, _ string, e *message.Event) string { return s.time(queued(e)) },
		"timeFirstAttempt": func(s *CSV, _ string, e *message.Event) string {
			if e.Attempt != 1 {
				return ""
			}
			return s.time(e.Time)
		},
		"totalSecondsQueued": text(secondsQueued),
		"orig":               text(func(e *message.Event) string { return e.Sender }),
		"rcpt":               text(func(e *message.Event) string { return e.Recipient }),
		"dsnAction":          func(_ *CSV, rec string, _ *message.Event) string { return dsnAction(rec) },
		"dsnStatus":          reply(dsnStatus),
		"dsnDiag":            reply(dsnDiag),
		"dsnMta":             reply(dsnMTA),
		"bounceCat":          text(bounceCategory),
		"srcType": func(_ *CSV, rec string, e *message.Event) string {
			if rec != "r" {
				return ""
			}
			return e.Origin
		},
		"dlvType": reply(func(r *message.Reply) string {
			if r.Local && !r.RemoteIP.IsValid() {
				return ""
			}
			return "smtp"
		}),
		"dlvDestinationIp": reply(func(r *message.Reply) string { return ipText(r.RemoteIP) }),
		"dlvTlsProtocol":   reply(func(r *message.Reply) string { p, _, _ := strings.Cut(r.TLS, " "); return p }),
		"dlvTlsCipher":     reply(func(r *message.Reply) string { _, c, _ := strings.Cut(r.TLS, " "); return c }),
		"dlvSize":          text(func(e *message.Event) string { return number(e.Size) }),
		"vmta":             text(func(e *message.Event) string { return e.Egress.Source }),
		"vmtaPool":         text(func(e *message.Event) string { return e.Egress.Pool }),
		"jobId":            text(func(e *message.Event) string { return e.Campaign }),
		"envId":            metaField("envid"),
		"queue":            text(queueName),
		"format": func(_ *CSV, rec string, e *message.Event) string {
			if rec != "rb" && rec != "f" {
				return ""
			}
			return e.Origin
		},
		"feedbackType": func(_ *CSV, rec string, e *message.Event) string {
			if rec != "f" {
				return ""
			}
			return e.Detail
		},
		"header_Message-Id": text(func(e *message.Event) string { return e.RFCMessageID }),
		"messageId": text(func(e *message.Event) string {
			if e.MessageID.IsZero() {
				return ""
			}
			return e.MessageID.String()
		}),
		"recipientId": text(func(e *message.Event) string {
			if e.MessageID.IsZero() {
				return ""
			}
			return message.RecipientID(e.MessageID, e.N)
		}),
		"eventId":  text(func(e *message.Event) string { return message.EventID(e.Time, e.Seq).String() }),
		"tenant":   text(func(e *message.Event) string { return e.Tenant }),
		"attempt":  text(func(e *message.Event) string { return number(e.Attempt) }),
		"class":    text(func(e *message.Event) string { return e.Class.String() }),
		"tags":     text(func(e *message.Event) string { return strings.Join(e.Tags, ";") }),
		"category": text(func(e *message.Event) string { return e.Category.String() }),
		"detail":   text(func(e *message.Event) string { return e.Detail }),
		"site":     text(func(e *message.Event) string { return e.Egress.Site }),
		"provider": text(func(e *message.Event) string { return e.Egress.Provider }),
	}
	for _, name := range emptyFields() {
		known[name] = text(func(*message.Event) string { return "" })
	}
	return known
}

// queued is when the message was accepted, which its id tells.
func queued(e *message.Event) time.Time {
	if e.MessageID.IsZero() {
		return time.Time{}
	}
	return e.MessageID.Time()
}

func secondsQueued(e *message.Event) string {
	from := queued(e)
	if from.IsZero() {
		return ""
	}
	return strconv.FormatInt(max(0, int64(e.Time.Sub(from)/time.Second)), 10)
}

func dsnAction(rec string) string {
	switch rec {
	case "d":
		return "relayed"
	case "b", "rb":
		return "failed"
	case "t", "tq":
		return "delayed"
	}
	return ""
}

func dsnStatus(r *message.Reply) string {
	if s := r.Enhanced.String(); s != "" {
		return s
	}
	if class := r.Code / 100; class == 2 || class == 4 || class == 5 {
		return strconv.Itoa(class) + ".0.0"
	}
	return ""
}

func dsnDiag(r *message.Reply) string {
	kind := "smtp;"
	if r.Local {
		kind = "x-tradewind;"
	}
	return string(r.AppendText([]byte(kind)))
}

func dsnMTA(r *message.Reply) string {
	switch ip := ipText(r.RemoteIP); {
	case ip == "":
		return r.RemoteHost
	case r.RemoteHost == "":
		return ip
	default:
		return r.RemoteHost + " (" + ip + ")"
	}
}

func bounceCategory(e *message.Event) string {
	switch {
	case e.Category != message.NoCategory:
		return e.Category.PMTA()
	case e.Type == message.EventExpired:
		return message.MessageExpired.String()
	case e.Type == message.EventBounced, e.Type == message.EventSuppressed, e.Type == message.EventCanceled:
		return message.Other.String()
	}
	return ""
}

func queueName(e *message.Event) string {
	domain := e.Egress.Site
	if i := strings.LastIndexByte(e.Recipient, '@'); i >= 0 {
		domain = e.Recipient[i+1:]
	}
	if e.Egress.Source == "" {
		return domain
	}
	return domain + "/" + e.Egress.Source
}

func ipText(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.String()
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
