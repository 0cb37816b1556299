package identity

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Renewer keeps a Source's certificate young.
type Renewer struct {
	Source *Source // required
	// Issue gets a certificate for a request; roots nil keeps the current ones. Required.
	Issue   func(ctx context.Context, csrDER []byte) (chainPEM, rootsPEM []byte, err error)
	Logger  *slog.Logger  // nil is silent
	Timeout time.Duration // of one Issue; zero is 10 s, and never more than a tenth of the lifetime
}

// renewCap makes a certificate of 30 days a day old at most: withdrawal is by
// the registry, but a node that cannot renew should be noticed the next day.
const renewCap = 24 * time.Hour

// Due is when the current certificate is to be renewed: when a third of its
// lifetime is used, at most a day after its beginning.
func (r *Renewer) Due() time.Time {
	from := r.Source.NotBefore()
	return from.Add(min(r.lifetime()/3, renewCap))
}

func (r *Renewer) lifetime() time.Duration {
	return r.Source.NotAfter().Sub(r.Source.NotBefore())
}

// Run renews until ctx ends; then it returns nil. A renewal that fails is tried
// again, from every hundredth to every tenth of the lifetime, for ever: a
// registry may let a withdrawn node in again.
func (r *Renewer) Run(ctx context.Context) error {
	if r.Source == nil || r.Issue == nil {
		return errors.New("renew identity: Source and Issue are required")
	}
	log := r.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	retry := time.Duration(0)
	for {
		life := r.lifetime()
		wait := retry
		if wait == 0 {
			// Jitter of a tenth of the wait, later only: nodes that started
			// together do not renew together.
			wait = jitter(time.Until(r.Due()), 10)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(wait, 0)):
		}
		err := r.once(ctx, life)
		switch {
		case err == nil:
			retry = 0
			log.Info("identity renewed", "serial", r.Source.Serial(), "not_after", r.Source.NotAfter())
		case ctx.Err() != nil:
			return nil
		default:
			if retry == 0 {
				retry = clamp(life/100, 100*time.Millisecond, 10*time.Second)
			} else {
				retry = jitter(clamp(2*retry, 0, min(life/10, 10*time.Minute)), 5)
			}
			left := time.Until(r.Source.NotAfter())
			level := slog.LevelWarn
			if left < life/3 {
				level = slog.LevelError
			}
			log.Log(ctx, level, "identity renewal fails", "error", err, "valid_for", left.Round(time.Second), "retry_in", retry.Round(time.Millisecond))
		}
	}
}

func (r *Renewer) once(ctx context.Context, life time.Duration) error {
	timeout := r.Timeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, max(min(timeout, life/10), 100*time.Millisecond))
	defer cancel()
	key, csr, err := NewKeyAndCSR()
	if err != nil {
		return err
	}
	chain, roots, err := r.Issue(ctx, csr)
	if err != nil {
		return err
	}
	if len(roots) == 0 {
		roots = r.Source.RootsPEM()
	}
	return r.Source.Replace(chain, key, roots)
}

func clamp(d, lo, hi time.Duration) time.Duration { return max(min(d, hi), lo) }

// jitter lengthens d by up to 1/part of it.
func jitter(d time.Duration, part int64) time.Duration {
	if n := int64(d) / part; n > 0 {
		d += time.Duration(rand.Int64N(n))
	}
	return d
}
