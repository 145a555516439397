package queue

import (
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Report is what Verify found.
type Report struct {
	Messages   int      `json:"messages"`
	Recipients int      `json:"recipients"`
	Due        int      `json:"due"`
	Ready      int      `json:"ready"`
	BodyBytes  int64    `json:"body_bytes"`
	Quarantine int      `json:"quarantine"`
	Problems   []string `json:"problems,omitempty"`
	// Damaged names the files of the store that cannot be read in part.
	Damaged []string `json:"damaged,omitempty"`
}

// maxProblems bounds the problems one report lists.
const maxProblems = 1000

func (r *Report) problem(format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Verify checks every invariant of a spool that nobody is using: each item lies
// under exactly one due or ready key and its locator names that key; each
// waiting recipient has a message with a whole body and an expiry; no message
// or body is left without recipients. It reads everything and changes nothing.
// What cannot be read is a problem of the message or recipient it belongs to.
func Verify(db *store.DB) (*Report, error) {
	r := &Report{}
	if err := r.verifyPlaces(db); err != nil {
		return nil, err
	}
	if err := r.verifyMessages(db); err != nil {
		return nil, err
	}
	if err := r.verifyBodies(db); err != nil {
		return nil, err
	}
	err := r.each(db, "quarantine", store.QuarantineSpan(), func(_, _ []byte) (bool, error) {
		r.Quarantine++
		return true, nil
	})
	if err != nil {
		return r, err
	}
	whole, err := db.CheckLookups()
	if !whole {
		r.problem("some lookups meet damage, which walks over the records may not")
	}
	if l := db.Lost(); l != nil {
		r.problem("the end of the log is missing: what was committed between %v and %v is lost", l.After, l.Until)
	}
	r.Damaged = db.DamagedFiles()
	return r, err
}

// each is EachReadable that notes when something was left out.
func (r *Report) each(db *store.DB, what string, s store.Span, fn func(k, v []byte) (bool, error)) error {
	whole, err := db.EachReadable(s, fn)
	if !whole {
		r.problem("some of the %s cannot be read", what)
	}
	return err
}

// get is Get that takes damage as a problem of whose.
func (r *Report) get(db *store.DB, whose string, key []byte) (v []byte, ok bool, err error) {
	v, err = db.Get(key)
	if store.IsDamage(err) {
		r.problem("%s: %v", whose, err)
		return nil, false, nil
	}
	return v, err == nil, err
}

// verifyPlaces checks items against locators, both ways.
func (r *Report) verifyPlaces(db *store.DB) error {
	check := func(k, record []byte) error {
		it, err := decodeItem(record)
		if err != nil {
			r.problem("item under %x: %v", k, err)
			return nil
		}
		at, ok, err := r.get(db, "recipient "+message.RecipientID(it.ID, it.Recipient.N), store.LocatorKey(nil, it.ID, it.Recipient.N))
		if err != nil || !ok {
			return err
		}
		if string(at) != string(k) {
			r.problem("recipient %s lies under %x but its locator says %x", message.RecipientID(it.ID, it.Recipient.N), k, at)
		}
		return nil
	}
	err := r.each(db, "waiting items", store.DueSpan(time.Time{}), func(k, v []byte) (bool, error) {
		r.Due++
		_, record, err := splitDue(v)
		if err != nil {
			r.problem("due record under %x: %v", k, err)
			return true, nil
		}
		return true, check(k, record)
	})
	if err != nil {
		return err
	}
	err = r.each(db, "ready items", store.ReadyQueuesSpan(nil), func(k, v []byte) (bool, error) {
		r.Ready++
		return true, check(k, v)
	})
	if err != nil {
		return err
	}
	return r.each(db, "locators", store.LocatorsSpan(), func(k, at []byte) (bool, error) {
		r.Recipients++
		id, n, err := store.ParseLocatorKey(k)
		if err != nil {
			r.problem("locator %x: %v", k, err)
			return true, nil
		}
		whose := "recipient " + message.RecipientID(id, n)
		v, ok, err := r.get(db, whose, at)
		if err != nil {
			return false, err
		}
		if ok && v == nil {
			r.problem("recipient %s is said to lie under %x, where nothing is", message.RecipientID(id, n), at)
		}
		msg, ok, err := r.get(db, whose, store.MessageKey(nil, id))
		if err != nil {
			return false, err
		}
		if ok && msg == nil {
			r.problem("recipient %s waits but its message is missing", message.RecipientID(id, n))
		}
		return true, nil
	})
}

// verifyMessages checks that every message decodes, has somebody waiting, a
// body of the right size and an expiry.
func (r *Report) verifyMessages(db *store.DB) error {
	return r.each(db, "messages", store.MessageSpan(), func(k, v []byte) (bool, error) {
		r.Messages++
		id, err := store.ParseMessageKey(k)
		if err != nil {
			r.problem("message key %x: %v", k, err)
			return true, nil
		}
		msg, err := decodeMessage(id, v)
		if err != nil {
			r.problem("%v", err)
			return true, nil
		}
		waiting := 0
		_, err = db.EachReadable(store.LocatorSpan(id), func(_, _ []byte) (bool, error) {
			waiting++
			return false, nil
		})
		if err != nil {
			return false, err
		}
		if waiting == 0 {
			r.problem("message %s is kept though nobody waits for it", id)
		}
		size := 0
		err = db.Each(store.BodySpan(id), func(_, v []byte) (bool, error) {
			size += len(v)
			return true, nil
		})
		if err != nil && !store.IsDamage(err) {
			return false, err
		}
		if err != nil {
			r.problem("message %s: body: %v", id, err)
		} else if size != msg.Size {
			r.problem("message %s: body has %d bytes, want %d", id, size, msg.Size)
		}
		r.BodyBytes += int64(size)
		expiry, ok, err := r.get(db, "message "+id.String(), store.ExpiryKey(nil, msg.Expires, id))
		if err != nil {
			return false, err
		}
		if ok && expiry == nil {
			r.problem("message %s has no expiry", id)
		}
		return true, nil
	})
}

// verifyBodies looks for bodies without a message.
func (r *Report) verifyBodies(db *store.DB) error {
	var last message.ID
	return r.each(db, "bodies", store.BodiesSpan(), func(k, _ []byte) (bool, error) {
		id, err := store.ParseBodyKey(k)
		if err != nil {
			r.problem("body key %x: %v", k, err)
			return true, nil
		}
		if id == last {
			return true, nil
		}
		last = id
		msg, ok, err := r.get(db, "body of "+id.String(), store.MessageKey(nil, id))
		if err != nil || !ok {
			return err == nil, err
		}
		pending, ok, err := r.get(db, "body of "+id.String(), store.PendingKey(nil, id))
		if err != nil || !ok {
			return err == nil, err
		}
		if msg == nil && pending == nil {
			r.problem("body of %s is kept though its message is gone", id)
		}
		return true, nil
	})
}
