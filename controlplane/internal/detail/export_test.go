package detail

import (
	"context"
	"errors"
)

// Hour does what an hour's passing does: the log becomes Parquet, and what is old or too much goes.
func Hour(ctx context.Context, s *Store) error {
	return s.order(ctx, func(ctx context.Context) error {
		return errors.Join(s.rotateLog(ctx), s.rollAll(ctx), s.expire())
	})
}
