package controlplane

import (
	"context"
	"fmt"
	"strings"

	"bailiwick/controlplane/internal/sink"
	"bailiwick/controlplane/internal/sink/kafka"
)

// openSinks reads where usage goes besides the ledger: kafka=host:port,host:port/topic each.
func (n *Node) openSinks() (err error) {
	cfg := sink.Config{Ledger: n.ledger, Leader: n.replica, Forget: n.cfg.ForgetSinks, Budget: n.cfg.OutboxBytes, Logger: n.log}
	for _, text := range n.cfg.Sinks {
		kind, where, _ := strings.Cut(text, "=")
		if kind != "kafka" {
			return fmt.Errorf("sink %q: write it as kafka=host:port,host:port/topic", text)
		}
		k, err := kafka.Parse(where)
		if err != nil {
			return err
		}
		s, err := kafka.New(k)
		if err != nil {
			return err
		}
		n.closeSinks = append(n.closeSinks, s.Close)
		cfg.Sinks = append(cfg.Sinks, s)
	}
	n.pump, err = sink.New(cfg)
	return err
}

// runSinks closes the sinks' connections only after nothing feeds them any more.
func (n *Node) runSinks(ctx context.Context) error {
	err := n.pump.Run(ctx)
	for _, end := range n.closeSinks {
		end()
	}
	return err
}
