//! A ledger that is told again from an archive: whether its data is gone, and how it is made again, closed.

use super::life::{self, About};
use super::past::Claim;
use super::step::{Own, call};
use super::{Found, RedisLedger, replicas, url, wire};
use crate::clock::Clock;
use crate::error::Result;
use crate::ledger::reassertion::{ArchivedPart, Life};
use crate::ledger::shared::hex;

impl RedisLedger {
    /// Opens the ledger with this id, whether or not its data is still there, and makes nothing. For a ledger whose data
    /// is gone the master key is needed: its secret is derived from that.
    ///
    /// # Errors
    /// As [`open`](Self::open), and `Config` when another ledger is in use there.
    pub fn open_to_restore(
        url: &str,
        clock: std::sync::Arc<dyn Clock>,
        master: Option<&[u8]>,
        id: &str,
    ) -> Result<Self> {
        let place = url::parse(url)?;
        let found: Found = super::on_own_runtime(async {
            let found = life::find_again(&place, master, id).await?;
            replicas::demand(&place).await?;
            Ok(found)
        })?;
        Ok(Self::found(place, clock, found))
    }

    pub(super) async fn life_now(&self) -> Result<Life> {
        let command = wire::function("about", &self.place.ns, &[]);
        let about = About::read(call(&self.own().link, &command).await?)?;
        Ok(if about.is_gone(&self.place, &self.id)? {
            Life::Gone
        } else if about.open {
            Life::Open
        } else {
            Life::Closed
        })
    }

    pub(super) async fn await_part(&self, part: &ArchivedPart) -> Result<Life> {
        let mut life = self.life_now().await?;
        if part.upto_seq <= part.after_seq {
            return Ok(life);
        }
        let claim = Claim {
            epoch: part.era()?,
            start: part.after_seq,
            upto: part.upto_seq,
        };
        let own = self.own();
        if life == Life::Gone {
            self.make_again(own, part, claim).await?;
            // Nothing that this process has copies of is there.
            own.state().forget_records();
            life = self.life_now().await?;
        }
        if life == Life::Closed && own.claim(&*self.clock, claim).await? {
            life = Life::Open;
        }
        Ok(life)
    }

    async fn make_again(&self, own: &Own, part: &ArchivedPart, claim: Claim) -> Result<()> {
        let name: [u8; 6] = std::array::from_fn(|_| self.place.server.random());
        let mut command = wire::function("anew", &self.place.ns, &[]);
        command
            .arg(part.upto_seq)
            .arg(format!("{:012x}", claim.epoch))
            .arg(hex(&name));
        for (name, value) in life::own_record(&self.id, &self.secret, self.secret_in_ledger)? {
            command.arg(name).arg(value);
        }
        command.arg("seen").arg(part.at_ms);
        let about = About::read(own.ask(&command).await?)?;
        if about.is_gone(&self.place, &self.id)? {
            return Err(wire::unreadable());
        }
        Ok(())
    }
}
