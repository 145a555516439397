package mx

import (
	"github.com/tradewind-mta/tradewind/message"
)

// local makes a reply of our own about the resolution of a name.
func local(code int, detail message.Enhanced, text string) *message.Reply {
	return &message.Reply{Code: code, Enhanced: detail, Text: text, Stage: message.StageResolve, Local: true}
}

// unknown is the reply when DNS did not tell: RFC 3463, X.4.3, directory
// server failure.
func unknown(text string) *message.Reply {
	return local(451, message.Enhanced{4, 4, 3}, text)
}

// Unreachable folds what Addrs said of every host of a route into one reply:
// permanent only if each is, because one host that might still come up is
// reason to wait. No replies at all count as temporary. Any of replies may be
// nil, for a host that has addresses; if all its connections failed, their
// failure is the caller's to report, so Unreachable returns nil.
func Unreachable(replies ...*message.Reply) *message.Reply {
	if len(replies) == 0 {
		return unknown("no mail host is known")
	}
	verdict := replies[0]
	for _, rep := range replies {
		if rep == nil {
			return nil
		}
		if rep.Temporary() && !verdict.Temporary() {
			verdict = rep
		}
	}
	if len(replies) > 1 && !verdict.Temporary() {
		return local(550, message.Enhanced{5, 4, 4}, "none of the mail hosts has an address")
	}
	return verdict
}
