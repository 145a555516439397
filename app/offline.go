package app

import (
	"errors"
	"time"

	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/suppression"
)

// errNotRunning keeps events in the list's outbox.
var errNotRunning = errors.New("app: no engine runs; its next start journals the event")

// OpenSuppressions opens the suppression list of an engine that is not running,
// and makes its store if there is none. Events of changes wait in the store for
// the next start. It fails, with the error of the lock, while an engine runs.
func OpenSuppressions(cfg *configs.Config) (_ *suppression.List, closeAll func() error, err error) {
	lock, err := store.Lock(cfg.DataDir, nil)
	if err != nil {
		return nil, nil, err
	}
	db, err := store.Open(cfg.DataDir, store.Ledger, store.Options{})
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	closeAll = func() error { return errors.Join(db.Close(), lock.Close()) }
	key, err := suppressionKey(cfg, false)
	if err != nil {
		return nil, nil, errors.Join(err, closeAll())
	}
	list, err := suppression.New(db, suppression.Config{
		Key: key, Policy: suppressionPolicy(&cfg.Suppression), KeepAddresses: cfg.Suppression.KeepAddresses,
		Publish: func(...*message.Event) error { return errNotRunning }, Now: time.Now,
	})
	if err != nil {
		return nil, nil, errors.Join(err, closeAll())
	}
	return list, closeAll, nil
}
