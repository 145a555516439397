package store

import (
	"fmt"
	"sync"
	"time"
)

// A store that has failed can keep whoever calls it for ever: guardedFS and
// Fatalf hold goroutines at the place of the failure, some with Pebble's locks
// held, and others queue up behind them. What can meet that runs on a goroutine
// of the pool below, and its caller goes on as soon as the store is dead. The
// goroutine left behind ends with the process.

// maxIdle bounds the goroutines kept for the next call; a burst starts more.
const maxIdle = 64

// call is one piece of work for the pool.
type call struct {
	fn   func() error
	done chan error // of one, so that nobody waits to be heard
}

// bounded returns what fn returns, or ErrDead as soon as the store is dead.
func (db *DB) bounded(fn func() error) error {
	c := call{fn, make(chan error, 1)}
	select {
	case db.calls <- c:
	default:
		go db.work(c)
	}
	select {
	case err := <-c.done:
		return err
	case <-db.died:
	}
	select {
	case err := <-c.done: // it came to an end all the same
		return err
	default:
		return db.Err()
	}
}

// Apart is bounded for readers that there are thousands of: Pebble reads deep
// down the stack, and each of them would keep 8 KiB more of it from then on. At
// most maxIdle run at a time, the others wait. A panic of fn is the caller's.
func (db *DB) Apart(fn func() error) error {
	select {
	case db.reads <- struct{}{}:
	case <-db.died:
		return db.Err()
	}
	err := db.bounded(func() (err error) {
		defer func() {
			<-db.reads
			if v := recover(); v != nil {
				err = panicked{v}
			}
		}()
		return fn()
	})
	if p, ok := err.(panicked); ok {
		panic(p.value)
	}
	return err
}

// panicked carries a panic from one goroutine to another.
type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprint(p.value) }

// work serves calls until the store ends, or enough others wait for them.
func (db *DB) work(c call) {
	for {
		c.done <- c.fn()
		if db.idle.Add(1) > maxIdle {
			db.idle.Add(-1)
			return
		}
		select {
		case c = <-db.calls:
			db.idle.Add(-1)
		case <-db.died:
			return
		case <-db.closed:
			return
		}
	}
}

// stall notices that commits do not come to an end. The log is synced in order,
// so on a healthy disk one ends all the time while others wait.
type stall struct {
	mu    sync.Mutex // protects everything below
	ended uint64     // commits ended at the last look
	since time.Time  // when they were fewer, or nobody waited
}

// Stalled says for how long no commit has ended although some are waiting. It
// knows only what it saw when it was asked: ask often.
func (db *DB) Stalled(now time.Time) time.Duration {
	ended := db.ended.Load()
	waiting := db.begun.Load() > ended
	db.stall.mu.Lock()
	defer db.stall.mu.Unlock()
	if !waiting || ended != db.stall.ended || db.stall.since.IsZero() {
		db.stall.ended, db.stall.since = ended, now
	}
	return now.Sub(db.stall.since)
}

// Committing is the number of commits under way.
func (db *DB) Committing() int { return int(db.begun.Load() - db.ended.Load()) }
