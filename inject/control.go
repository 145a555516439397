package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tradewind-mta/tradewind/message"
)

// controls fills what env leaves open from the control headers of msg.
func (h *header) controls(msg []byte, env *Envelope) *Error {
	if len(h.cuts) == 0 {
		return nil
	}
	if t := h.text(msg, ctlTenant); t != "" && t != env.Tenant {
		if !env.AnyTenant {
			return forbid("X-Tradewind-Tenant", "these credentials may not send for another tenant")
		}
		env.Tenant = t
	}
	fill(&env.Campaign, h.text(msg, ctlCampaign), h.text(msg, ctlJob))
	fill(&env.Pool, h.text(msg, ctlPool), h.text(msg, ctlVirtualMTA))
	fill(&env.EnvID, h.text(msg, ctlEnvID))
	if v := h.text(msg, ctlMetadata); v != "" && len(env.Metadata) == 0 {
		env.Metadata = json.RawMessage(v)
	}
	if len(env.Tags) == 0 {
		for _, s := range h.tags {
			for v := range strings.SplitSeq(text(msg, s), ",") {
				if v = strings.TrimSpace(v); v != "" {
					env.Tags = append(env.Tags, v)
				}
			}
		}
	}
	if v := h.text(msg, ctlClass); v != "" && env.Class == message.Bulk {
		c, err := message.ParseClass(strings.ToLower(v))
		if err != nil {
			return refuse("X-Tradewind-Class", CodeInvalid, "not one of bulk, transactional, security")
		}
		env.Class = c
	}
	if err := fillTime(&env.SendAt, "X-Tradewind-Send-At", h.text(msg, ctlSendAt)); err != nil {
		return err
	}
	if err := fillTime(&env.Expires, "X-Tradewind-Expires", h.text(msg, ctlExpires)); err != nil {
		return err
	}
	if v := h.text(msg, ctlSandbox); v != "" {
		on, ok := parseSwitch(v)
		if !ok {
			return refuse("X-Tradewind-Sandbox", CodeInvalid, "not one of yes, no")
		}
		env.Sandbox = env.Sandbox || on == On
	}
	if err := env.Verp.fill(h.text(msg, ctlVerp)); err != nil {
		return err
	}
	return env.Track.fill(h.text(msg, ctlTrack))
}

func (h *header) text(msg []byte, k kind) string {
	if !h.has(k) {
		return ""
	}
	return text(msg, h.value[k])
}

// fill sets v to the first of values that says something, unless it is set.
func fill(v *string, values ...string) {
	for _, s := range values {
		if *v == "" {
			*v = s
		}
	}
}

func fillTime(v *time.Time, field, s string) *Error {
	if s == "" || !v.IsZero() {
		return nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return refuse(field, CodeInvalid, "not a time of RFC 3339, such as 2026-01-02T15:04:05Z")
	}
	*v = t
	return nil
}

func parseSwitch(s string) (Switch, bool) {
	switch strings.ToLower(s) {
	case "yes", "true", "on", "1":
		return On, true
	case "no", "false", "off", "0":
		return Off, true
	}
	return Unset, false
}

// fill reads X-Tradewind-Track: a list of "opens" and "clicks", or "none".
// What the list does not name is off.
func (t *Track) fill(s string) *Error {
	if s == "" || *t != (Track{}) {
		return nil
	}
	v := Track{Opens: Off, Clicks: Off}
	for w := range strings.SplitSeq(strings.ToLower(s), ",") {
		switch strings.TrimSpace(w) {
		case "opens":
			v.Opens = On
		case "clicks":
			v.Clicks = On
		case "none", "no", "off":
		default:
			return refuse("X-Tradewind-Track", CodeInvalid, "not a list of opens and clicks, nor none")
		}
	}
	*t = v
	return nil
}

// check holds the envelope to its bounds, whoever filled it.
func (env *Envelope) check() *Error {
	for _, v := range [...]struct {
		field, value string
		limit        int
	}{
		{"tenant", env.Tenant, maxName},
		{"campaign", env.Campaign, maxName},
		{"pool", env.Pool, maxName},
		{"envid", env.EnvID, maxEnvID},
	} {
		if err := checkName(v.field, v.value, v.limit); err != nil {
			return err
		}
	}
	if env.Ret != "" && env.Ret != "FULL" && env.Ret != "HDRS" {
		return refuse("ret", CodeInvalid, "not one of FULL, HDRS")
	}
	if len(env.Tags) > maxTags {
		return refuse("tags", CodeLimit, "more than %d tags", maxTags)
	}
	for _, t := range env.Tags {
		if err := checkName("tags", t, maxName); err != nil {
			return err
		}
	}
	m, err := Metadata(env.Metadata)
	if err != nil {
		return refuse("metadata", CodeInvalid, "%s", err.Error())
	}
	env.Metadata = m
	return nil
}

func checkName(field, s string, limit int) *Error {
	if len(s) > limit {
		return refuse(field, CodeLimit, "longer than %d octets", limit)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7F && r < 0xA0 }) {
		return refuse(field, CodeControl, "contains a control character or is not UTF-8")
	}
	return nil
}

// Metadata checks that raw is empty or one JSON object of at most 2,048 octets,
// and returns it on one line, as events carry it. "null" counts as empty.
func Metadata(raw json.RawMessage) (json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return nil, nil
	case len(raw) > maxMetadata:
		return nil, errors.New("longer than 2048 octets")
	case raw[0] != '{' || !json.Valid(raw) || !utf8.Valid(raw):
		return nil, errors.New("not a JSON object")
	}
	if !slices.ContainsFunc(raw, func(c byte) bool { return c == '\n' || c == '\r' || c == '\t' }) {
		return raw, nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return nil, errors.New("not a JSON object")
	}
	return b.Bytes(), nil
}
