package main

import (
	"context"
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/app"
)

// tokenRotate puts a new key in front of those that tokens are sealed with.
func tokenRotate(_ context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	if err := c.parse(); err != nil {
		return err
	}
	cfg, err := loadConfig(*file)
	if err != nil {
		return err
	}
	list, err := app.RotateTokenKeys(cfg, time.Now())
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "key %d seals from the next start or reload on; %d keys open\n", list[0].ID, len(list))
	return nil
}
